"""`train`: resolve the settings, build what they name, fit, test.

Torch-free at import; settings that need nothing heavy are checked before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.prepare import Resolved, build, resolve
from timm_robust.api.settings import AUTOATTACK_SECONDS, TEST_ATTACKS, TrainSettings
from timm_robust.errors import UserError
from timm_robust.plugin import get_manager
from timm_robust.runs.history import TrainResult
from timm_robust.runs.layout import EVALUATION
from timm_robust.utils.files import write_result

if TYPE_CHECKING:
    from torch import nn

    from timm_robust.evaluation.evaluate import Evaluation
    from timm_robust.training.config import TrainConfig
    from timm_robust.training.engine import Engine


def list_methods() -> list[str]:
    """Names of the training methods of the installed plugins."""
    return sorted(get_manager().defenses())


def register_models() -> None:
    """Registers the networks of plugins, such as `preact_resnet18_cifar`, with `timm.create_model`."""
    get_manager().register_models()


def train(
    model: str | nn.Module = "resnet18",
    method: str = "sat",
    data: Any = "digits",
    *,
    output: str | Path | None = None,
    method_args: Mapping[str, Any] | None = None,
    modifiers: Sequence[str] | Mapping[str, Mapping[str, Any] | None] = (),
    eps: str | float | None = None,
    norm: str = "Linf",
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    recipe_args: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    activation: str | None = None,
    stem: str = "auto",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    extra_data: Any = None,
    extra_share: float = 0.7,
    test_attacks: Sequence[str] = TEST_ATTACKS,
    test_examples: int | None = None,
    autoattack_seconds: float = AUTOATTACK_SECONDS,
    device: str | None = None,
    precision: str = "fp32",
    channels_last: bool = True,
    compile: bool = False,
    workers: int | None = None,
    seed: int = 0,
    track: Sequence[str] = (),
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[object] = (),
) -> TrainResult:
    """Trains a timm model adversarially, and measures the best checkpoint on the test split.

    Args:
        model: name of a timm model, or a module of your own that takes normalised images and returns logits.
        method: training method; `list_methods()` names them.
        data: dataset: digits (embedded), a folder train/CLASS/* with val|test/CLASS/*, an .npz file, or a timm dataset
            name; in Python also tensors or Datasets.
        output: folder of the run; default: runs/MODEL-METHOD-DATA, numbered if taken.
        method_args: options of the method, such as beta=5, by name; see `timm-robust methods NAME`.
        modifiers: modifiers to apply, such as awp or swa; as ["awp"] or {"awp": {"gamma": 0.01}}. See
            `timm-robust modifiers`.
        eps: radius of the perturbation on the [0, 1] pixel scale, such as 8/255; default: 8/255 up to 64 pixels, 4/255
            above; in L2 0.5 and 3.
        norm: norm of the perturbation: Linf or L2.
        recipe: named training settings; default: chosen by dataset and image size. See `timm-robust recipes`.
        epochs: passes over the training set; default: the recipe's.
        batch_size: images per step and process; default: the recipe's.
        lr: peak learning rate; default: the recipe's.
        recipe_args: any other recipe setting, such as ema=0.999 clip_grad=1, by name.
        model_kwargs: arguments of `timm.create_model`, such as layers=[1,1,1,1] drop_rate=0.1, by name.
        pretrained: start from timm's pretrained weights.
        activation: smooth activation to swap in, such as silu, or none; default: the method's.
        stem: stem: auto keeps the resolution of images up to 64 pixels, none leaves the model unchanged.
        data_dir: root folder of timm datasets.
        download: allow timm datasets to be downloaded.
        image_size: side of the images in pixels; default: the data's.
        extra_data: additional training images, such as generated ones: a folder CLASS/*, an .npz file with image and
            label, or a timm dataset name; in Python also a pair of tensors or a Dataset.
        extra_share: share of extra images in each batch. An epoch has as many steps as without them.
        test_attacks: attacks on the test split after training: clean, fgsm, pgd-K-R (K steps, R restarts), autoattack.
            Empty skips the test.
        test_examples: number of test images; default: all; for AutoAttack as many as fit its time.
        autoattack_seconds: time budget of AutoAttack, in seconds.
        device: torch device; cpu stays off the GPU; default: the best available.
        precision: precision of training: fp32, bf16 or fp16.
        channels_last: channels-last memory layout.
        compile: compile the model with torch.compile.
        workers: processes that decode large images; default: one per core, at most 8.
        seed: random seed.
        track: experiment trackers of Accelerate that receive each epoch's metrics, such as tensorboard.
        resume: continue the run in the output folder, with the arguments that it was started with.
        quiet: no progress output.
        callbacks: objects that watch the run, and may stop it: see `timm_robust.Callback`.

    Returns:
        the run's folder, history and accuracies; its `repr` is the summary.

    Raises:
        UserError: an argument is wrong; nothing was trained.
        RunFailed: training diverged or could not be saved; the message says what is kept.
    """
    return _train(
        TrainSettings(
            model=model, method=method, data=data, output=output, method_args=method_args, modifiers=modifiers, eps=eps,
            norm=norm, recipe=recipe, epochs=epochs, batch_size=batch_size, lr=lr, recipe_args=recipe_args,
            model_kwargs=model_kwargs, pretrained=pretrained, activation=activation, stem=stem, data_dir=data_dir,
            download=download, image_size=image_size, extra_data=extra_data, extra_share=extra_share,
            test_attacks=test_attacks, test_examples=test_examples, autoattack_seconds=autoattack_seconds,
            device=device, precision=precision, channels_last=channels_last, compile=compile, workers=workers,
            seed=seed, track=track, resume=resume, quiet=quiet,
        ),
        callbacks,
    )  # fmt: skip


def _train(settings: TrainSettings, callbacks: Sequence[object] = ()) -> TrainResult:
    resolved = resolve(settings)
    config = build(resolved, callbacks)
    engine, history = _fit(resolved, config)
    result = TrainResult(resolved.folder.path, config.threat, history)
    if resolved.settings.test_attacks and engine.main:
        result.evaluation = _test(resolved.settings, result, config, engine)
    return result


def _fit(resolved: Resolved, config: TrainConfig) -> tuple[Engine, list[dict[str, Any]]]:
    """Trains, after the method's teachers where it has any."""
    from timm_robust.api.teachers import trained_teachers
    from timm_robust.training.engine import Engine

    settings = resolved.settings

    def train_teacher(**changes: Any) -> TrainResult:
        return _train(TrainSettings(**{**settings.recorded(), **changes}))

    try:
        config.require_fit()
        config.teachers = trained_teachers(resolved.method.spec, resolved.options, config, train_teacher)
        engine = Engine(config)
        for line in _introduction(resolved, config, engine.device):
            engine.display.say(line)
        return engine, engine.fit()
    except UserError:
        if not settings.resume:
            resolved.folder.forget()  # nothing was trained: the corrected command may use the same folder
        raise


def _test(settings: TrainSettings, result: TrainResult, config: TrainConfig, engine: Engine) -> Evaluation:
    """Measures the best checkpoint on the test split, which nothing has seen before."""
    from timm_robust.data import as_tensors
    from timm_robust.evaluation.attack_spec import ENSEMBLES
    from timm_robust.evaluation.budget import affordable
    from timm_robust.evaluation.evaluate import evaluate_model
    from timm_robust.evaluation.inputs import EvalInputs
    from timm_robust.evaluation.settings import EvalSettings
    from timm_robust.runs.checkpoint import find_checkpoint, load

    attacks, count, data = list(settings.test_attacks), settings.test_examples, config.data
    try:
        engine.display.say("measuring the best checkpoint on the test split")
        own = None if engine.unwrapped_model.config.architecture else engine.unwrapped_model.model
        model = load(result.output, model=own, device=engine.device)
        images, targets = as_tensors(data.test, count or len(data.test))
        checkpoint = str(find_checkpoint(result.output))
        inputs = EvalInputs(model, images, targets, config.threat, name=checkpoint, data=data.name)
        ensembles = [name for name in attacks if name in ENSEMBLES] if count is None else []
        examples = {name: affordable(inputs, settings.autoattack_seconds) for name in ensembles}
        how = EvalSettings(seed=settings.seed, examples=examples)
        with engine.display.measuring() as progress:
            evaluation = evaluate_model(inputs, attacks, how, progress=progress)
    except BaseException:
        engine.display.warn(
            f"training is complete, the test is not: continue with timm-robust evaluate {result.output}"
        )
        raise
    write_result(result.output / EVALUATION, evaluation.to_dict(), engine.display)
    return evaluation


def _introduction(resolved: Resolved, config: TrainConfig, device: Any) -> list[str]:
    """Summary of the run in two lines; a third one describes label noise."""
    from timm_robust.data.noise import describe_noise
    from timm_robust.models.factory import count_parameters

    record, data, recipe, metadata = config.model.config, config.data, config.recipe, config.metadata
    swap = resolved.activation
    method = " with ".join(filter(None, (metadata["method"], ", ".join(metadata["modifiers"]))))
    extra = f" + {len(e.split)} extra images ({100 * e.share:.3g} % of each batch)" if (e := data.extra) else ""
    return [
        f"{record.architecture or record.module_class}, {count_parameters(config.model) / 1e6:.1f} M parameters"
        + (f", activations {swap}" if swap and swap != "none" else "")
        + f", on {data.name}: {len(data.train)} training{extra}, {len(data.val)} validation, "
        f"{len(data.test)} test images of {data.image_size} pixels, {data.num_classes} classes",
        f"method {method}, threat {config.threat}, recipe {resolved.preset(data)} "
        f"({recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.schedule} {recipe.lr:g}), "
        f"{config.precision} on {device}, seed {config.seed}, output {config.output}",
        *([describe_noise(data, recipe.label_noise)] if recipe.label_noise else []),
    ]
