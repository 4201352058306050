"""What a user calls to train, and what there is to train with.

Torch-free at import; the checks that need nothing heavy come before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import best_device
from timm_robust.errors import UserError, unknown
from timm_robust.options import parse_options, to_dict
from timm_robust.plugin import ModifierSpec, get_manager
from timm_robust.recipes.presets import default_preset, make_recipe, recommendations
from timm_robust.recipes.recipe import as_dict
from timm_robust.runs.folder import RunFolder, config_hash
from timm_robust.runs.history import TrainResult
from timm_robust.runs.layout import EVALUATION
from timm_robust.threat import make_threat, parse_eps
from timm_robust.utils.allocator import keep_freed_memory
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.files import write_result
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from torch import nn

    from timm_robust.data import DataBundle
    from timm_robust.evaluation.evaluate import Evaluation
    from timm_robust.options import Options
    from timm_robust.training.config import TrainConfig

TEST_ATTACKS = ("clean", "pgd-10-1", "autoattack")
"""What the end of a training run measures on the test split."""

AUTOATTACK_SECONDS = 90.0
"""Time that AutoAttack may take at the end of a training run; it runs on as many test images as fit."""


def list_methods() -> list[str]:
    """Names of the training methods that installed plugins offer."""
    return sorted(get_manager().defenses())


def register_models() -> None:
    """Lets `timm.create_model` know the networks that plugins add, such as `preact_resnet18_cifar`."""
    get_manager().register_models()


def train(
    model: str | nn.Module = "resnet18",
    method: str = "sat",
    data: Any = "digits",
    *,
    output: str | Path | None = None,
    eps: str | float | None = None,
    norm: str = "Linf",
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    recipe_args: Mapping[str, Any] | None = None,
    method_args: Mapping[str, Any] | None = None,
    modifiers: Sequence[str] | Mapping[str, Mapping[str, Any] | None] = (),
    activation: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    stem: str = "auto",
    image_size: int | None = None,
    extra_data: Any = None,
    extra_share: float = 0.7,
    data_dir: str | None = None,
    download: bool = False,
    seed: int = 0,
    precision: str = "fp32",
    device: str | None = None,
    channels_last: bool = True,
    compile: bool = False,
    workers: int | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    test_attacks: Sequence[str] = TEST_ATTACKS,
    test_examples: int | None = None,
    autoattack_seconds: float = AUTOATTACK_SECONDS,
    quiet: bool = False,
    callbacks: Sequence[object] = (),
) -> TrainResult:
    """Trains a timm model with a defense, and measures the best checkpoint on the test split.

    Args:
        model: a timm model name, or a module of your own that takes normalised images and returns logits.
        method: a defense, see `timm-robust methods`.
        data: `digits`, a folder, an .npz, a timm data set name, or in Python tensors or Datasets.
        output: the run's folder; by default `runs/MODEL-METHOD-DATA`, numbered if that is taken.
        eps: radius in units of the [0, 1] range ("8/255"); by default Linf 8/255 up to 64 pixels, 4/255 above.
        norm: "Linf" or "L2".
        recipe: a preset, see `timm-robust recipes`; by default chosen by data set and image size.
        epochs, batch_size, lr: the most used recipe settings.
        recipe_args: any other recipe setting by name.
        method_args: options of the method by name, see `timm-robust methods NAME`.
        modifiers: what composes with the method, such as ["awp"] or {"awp": {"gamma": 0.01}}; see
            `timm-robust modifiers`.
        activation: smooth activation to swap in such as "silu", or "none"; by default what the method recommends.
        model_kwargs: arguments for `timm.create_model`.
        pretrained: start from timm's pretrained weights.
        stem: `auto` keeps resolution for images of at most 64 pixels, `none` leaves the model as it is.
        image_size: side in pixels; by default that of the data.
        extra_data: more images to train on, such as generated ones: a folder `CLASS/*`, an .npz with `image` and
            `label`, a data set's name, or in Python a pair of tensors or a Dataset.
        extra_share: their share of each batch; an epoch has as many steps as without them.
        data_dir, download: root folder of timm data sets, and whether they may be fetched.
        seed: of every random draw.
        precision: "fp32", "bf16" or "fp16".
        device: "cpu" to stay off a GPU; by default the best there is.
        channels_last, compile: memory layout, and torch.compile.
        workers: data-loading processes for large images.
        resume: continue the run in `output`.
        track: trackers of accelerate that are told each epoch's numbers, such as "tensorboard".
        test_attacks: what to measure at the end; empty for nothing.
        test_examples: how many test images; by default all, AutoAttack as many as fit `autoattack_seconds`.
        autoattack_seconds: time for AutoAttack at the end.
        quiet: no progress.
        callbacks: objects that watch the run, and may stop it: see `timm_robust.Callback`.

    Returns:
        the run's folder, history and accuracies; its `repr` is the summary.

    Raises:
        UserError: any of the arguments is wrong; nothing was trained.
        RunFailed: training diverged or could not be saved; what is kept is said.
    """
    asked = {
        name: value
        for name, value in locals().items()
        if name not in ("output", "resume", "quiet", "workers", "callbacks")
    }
    display = Display(quiet)
    manager = get_manager()
    provided = manager.defense(method)
    options = parse_options(manager.load_config(method), dict(method_args or {}), owner=f"method {method!r}")
    modifier_options = parse_modifiers(modifiers)
    if eps is not None:
        parse_eps(eps, norm)
    if isinstance(extra_data, (str, Path)) and _same_place(extra_data, data):
        raise UserError(f"extra_data is the data itself, {str(data)!r}: held-out images would be trained on")
    folder = RunFolder.open(output or _default_output(model, method, data, resume), resume, asked)

    from timm_robust.api.teachers import trained_teachers
    from timm_robust.data import add_extra, load_data, with_label_noise
    from timm_robust.evaluation.attack_spec import ENSEMBLES, parse_attack, require_possible
    from timm_robust.models.factory import build_model
    from timm_robust.training.accelerator import PRECISIONS
    from timm_robust.training.config import TrainConfig
    from timm_robust.training.engine import Engine

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    test_attacks = [parse_attack(name).name for name in test_attacks]
    keep_freed_memory(device or best_device())
    with display.reading() as progress:
        bundle = load_data(
            data,
            image_size=image_size,
            seed=seed,
            device=device or best_device(),
            data_dir=data_dir,
            download=download,
            workers=workers,
            progress=progress,
        )
        if extra_data is not None:
            bundle = add_extra(
                bundle,
                extra_data,
                extra_share,
                data_dir=data_dir,
                download=download,
                workers=workers,
                progress=progress,
            )
    if test_examples is not None and test_examples > len(bundle.test):
        raise UserError(f"test_examples is {test_examples}, the test split has only {len(bundle.test)} images")
    threat = make_threat(norm, eps, image_size=bundle.image_size)
    preset = recipe or default_preset(bundle.name, bundle.image_size)
    recommended, swap = recommendations(provided)
    swap = swap if activation is None else activation
    chosen = {**(recipe_args or {})} | {
        name: value for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr)) if value is not None
    }
    settings = make_recipe(preset, recommended, chosen)
    check = parse_attack(settings.check_attack)
    if check.name in ENSEMBLES:
        raise UserError(
            f"recipe setting 'check_attack' is {check.name!r}, which takes hours: expected one like pgd-10-1"
        )
    for measure in (check, *map(parse_attack, test_attacks)):
        require_possible(measure, threat, bundle.num_classes)
    bundle = with_label_noise(bundle, settings.label_noise, seed)
    manager.register_models()
    _seed(seed)
    network = build_model(
        model,
        num_classes=bundle.num_classes,
        in_chans=bundle.in_chans,
        image_size=bundle.image_size,
        model_kwargs=dict(model_kwargs or {}),
        pretrained=pretrained,
        activation=None if swap == "none" else swap,
        stem=stem,
        data_mean=bundle.mean,
        data_std=bundle.std,
    )
    metadata = {
        "method": method,
        "method_args": to_dict(options),
        "modifiers": {name: to_dict(value) for name, value in modifier_options.items()},
        "threat": threat.to_dict(),
        "data": {"name": bundle.name, "class_names": list(bundle.class_names), "image_size": bundle.image_size},
        "seed": seed,
        "versions": versions(),
    }
    if bundle.extra:
        metadata["extra"] = {"name": bundle.extra.name, "images": len(bundle.extra.split), "share": bundle.extra.share}
    resolved = {"recipe": {"preset": preset, **as_dict(settings)}, "model": network.config.to_dict(), **metadata}
    origins = {
        "plugin": provided.provider(),
        "modifier_plugins": {name: manager.modifier(name).provider() for name in modifier_options},
        "hardware": hardware(),
        "config_hash": config_hash(resolved),
    }
    folder.write_manifest(resolved | origins)
    config = TrainConfig(
        model=network,
        defense=manager.load_target(method)(options),
        data=bundle,
        recipe=settings,
        threat=threat,
        output=folder.path,
        metadata=metadata,
        modifiers={name: manager.load_target(name, ModifierSpec)(one) for name, one in modifier_options.items()},
        seed=seed,
        precision=precision,
        device=device,
        channels_last=channels_last,
        compile=compile,
        workers=workers,
        resume=resume,
        trackers=list(track),
        display=display,
        observers=manager.observers(),
        callbacks=list(callbacks),
    )
    try:
        config.require_fit()
        config.teachers = trained_teachers(provided.spec, options, config, partial(train, **asked))
        engine = Engine(config)
        for line in _introduction(config, preset, swap, engine.device):
            engine.display.say(line)
        history = engine.fit()
    except UserError:
        if not resume:
            folder.forget()  # nothing was trained: the same folder takes the mended command
        raise
    result = TrainResult(folder.path, threat, history)
    if test_attacks and engine.main:
        try:
            result.evaluation = _final(
                result, bundle, list(test_attacks), test_examples, autoattack_seconds, seed, engine
            )
        except BaseException:
            engine.display.warn(
                f"training is complete, measuring is not: go on with timm-robust evaluate {folder.path}"
            )
            raise
    return result


def _introduction(config: TrainConfig, preset: str, swap: str | None, device: Any) -> list[str]:
    """What is about to run, in two lines, and in a third how many labels are wrong on purpose."""
    from timm_robust.data.noise import describe_noise
    from timm_robust.models.factory import count_parameters

    record, data, recipe, metadata = config.model.config, config.data, config.recipe, config.metadata
    method = " with ".join(filter(None, (metadata["method"], ", ".join(metadata["modifiers"]))))
    extra = f" + {len(e.split)} extra images ({100 * e.share:.3g} % of each batch)" if (e := data.extra) else ""
    return [
        f"{record.architecture or record.module_class}, {count_parameters(config.model) / 1e6:.1f} M parameters"
        + (f", activations {swap}" if swap and swap != "none" else "")
        + f", on {data.name}: {len(data.train)} training{extra}, {len(data.val)} validation, "
        f"{len(data.test)} test images of {data.image_size} pixels, {data.num_classes} classes",
        f"method {method}, threat {config.threat}, recipe {preset} "
        f"({recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.schedule} {recipe.lr:g}), "
        f"{config.precision} on {device}, seed {config.seed}, output {config.output}",
        *([describe_noise(data, recipe.label_noise)] if recipe.label_noise else []),
    ]


def _same_place(one: str | Path, other: Any) -> bool:
    """Whether both name one data set, or one is a folder inside the other."""
    if not isinstance(other, (str, Path)):
        return False
    paths = [Path(name).resolve() for name in (one, other)]
    return paths[0] == paths[1] or paths[1] in paths[0].parents


IN_RECIPE = {
    "ema": "--set ema=0.999",
    "label-smoothing": "--set label_smoothing=0.1",
    "cutout": "--set augment=cutout",
    "idbh": "--set augment=idbh-weak",
}
"""What other toolkits call modifiers and is a recipe setting or an argument here."""


def parse_modifiers(given: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None]) -> dict[str, Options]:
    """Options of each modifier by name; loads nothing heavy."""
    named = given if isinstance(given, Mapping) else dict.fromkeys([given] if isinstance(given, str) else given)
    for name in named:
        if name in IN_RECIPE:
            raise UserError(f"modifier {name!r} is a recipe setting here: {IN_RECIPE[name]}")
    manager = get_manager()
    return {
        name: parse_options(manager.load_config(name, ModifierSpec), dict(values or {}), owner=f"modifier {name!r}")
        for name, values in named.items()
    }


def _final(
    result: TrainResult,
    bundle: DataBundle,
    attacks: list[str],
    n_examples: int | None,
    seconds: float,
    seed: int,
    engine: Any,
) -> Evaluation:
    """The best checkpoint on the test split, which nothing has seen before."""
    from timm_robust.data import as_tensors
    from timm_robust.evaluation.attack_spec import ENSEMBLES
    from timm_robust.evaluation.budget import affordable
    from timm_robust.evaluation.evaluate import evaluate_model
    from timm_robust.evaluation.inputs import EvalInputs
    from timm_robust.evaluation.settings import EvalSettings
    from timm_robust.runs.checkpoint import find_checkpoint, load

    engine.display.say("measuring the best checkpoint on the test split")
    own = None if engine.unwrapped_model.config.architecture else engine.unwrapped_model.model
    model = load(result.output, model=own, device=engine.device)
    images, targets = as_tensors(bundle.test, n_examples or len(bundle.test))
    checkpoint = str(find_checkpoint(result.output))
    inputs = EvalInputs(model, images, targets, result.threat, name=checkpoint, data=bundle.name)
    ensembles = [name for name in attacks if name in ENSEMBLES] if n_examples is None else []
    settings = EvalSettings(seed=seed, examples={name: affordable(inputs, seconds) for name in ensembles})
    with engine.display.measuring() as progress:
        evaluation = evaluate_model(inputs, attacks, settings, progress=progress)
    write_result(result.output / EVALUATION, evaluation.to_dict(), engine.display)
    return evaluation


def _default_output(model: Any, method: str, data: Any, resume: bool) -> Path:
    if resume:
        raise UserError("resume needs the folder of the run to continue: pass output")
    name = model if isinstance(model, str) else type(model).__name__
    source = Path(data).stem if isinstance(data, (str, Path)) else "data"
    base = Path("runs") / f"{name}-{method}-{source}".replace("/", "_").lower()
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def _seed(seed: int) -> None:
    from accelerate.utils import set_seed

    set_seed(seed)
