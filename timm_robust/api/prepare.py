"""Preparation of a training run, from settings to what the engine trains: resolve, then build. Torch-free at import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import best_device
from timm_robust.api.settings import DEFAULTS, FREE_IN_A_RUN, TrainSettings
from timm_robust.errors import UserError, unknown
from timm_robust.options import parse_options, to_dict
from timm_robust.plugin import ModifierSpec, get_manager
from timm_robust.recipes.presets import default_preset, make_recipe, recommendations
from timm_robust.recipes.recipe import as_dict
from timm_robust.runs.folder import RunFolder, config_hash, free_folder
from timm_robust.threat import make_threat, parse_eps
from timm_robust.utils.allocator import keep_freed_memory
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from timm_robust.data import DataBundle
    from timm_robust.models.pixel_model import PixelModel
    from timm_robust.options import Options
    from timm_robust.plugin import DefenseSpec
    from timm_robust.plugin.registry import RegisteredSpec
    from timm_robust.recipes.recipe import Recipe
    from timm_robust.threat import Threat
    from timm_robust.training.config import TrainConfig


@dataclass(frozen=True)
class Resolved:
    """Settings that were checked as far as possible without torch, and the plugins that they name."""

    settings: TrainSettings
    method: RegisteredSpec[DefenseSpec]
    options: Options
    modifiers: dict[str, Options]
    folder: RunFolder
    display: Display

    @property
    def activation(self) -> str | None:
        """The activation to swap in: the user's, else the method's; "none" for none."""
        given = self.settings.activation
        return recommendations(self.method)[1] if given is None else given

    def preset(self, data: DataBundle) -> str:
        """Name of the recipe."""
        return self.settings.recipe or default_preset(data.name, data.image_size)


def resolve(settings: TrainSettings) -> Resolved:
    """Checks what needs nothing heavy, and opens the folder of the run."""
    manager, method = get_manager(), settings.method
    provided = manager.defense(method)
    options = parse_options(manager.load_config(method), dict(settings.method_args or {}), owner=f"method {method!r}")
    modifiers = parse_modifiers(settings.modifiers)
    if settings.eps is not None:
        parse_eps(settings.eps, settings.norm)
    if isinstance(settings.extra_data, (str, Path)) and _same_place(settings.extra_data, settings.data):
        raise UserError(f"extra_data is the data itself, {str(settings.data)!r}: held-out images would be trained on")
    folder = RunFolder.open(
        settings.output or _default_output(settings),
        settings.resume,
        settings.recorded(),
        may_differ=FREE_IN_A_RUN,
        defaults=DEFAULTS,
    )

    from timm_robust.evaluation.attack_spec import parse_attack
    from timm_robust.training.accelerator import PRECISIONS

    if settings.precision not in PRECISIONS:
        raise unknown("precision", settings.precision, PRECISIONS)
    named = replace(settings, test_attacks=[parse_attack(name).name for name in settings.test_attacks])
    return Resolved(named, provided, options, modifiers, folder, Display(settings.quiet))


def build(resolved: Resolved, callbacks: Sequence[object] = ()) -> TrainConfig:
    """Reads the data, builds the model, and writes the manifest."""
    from timm_robust.data import with_label_noise
    from timm_robust.training.config import TrainConfig

    settings, manager = resolved.settings, get_manager()
    keep_freed_memory(settings.device or best_device())
    data = _read_data(settings, resolved.display)
    if settings.test_examples is not None and settings.test_examples > len(data.test):
        raise UserError(f"test_examples is {settings.test_examples}, the test split has only {len(data.test)} images")
    threat = make_threat(settings.norm, settings.eps, image_size=data.image_size)
    preset = resolved.preset(data)
    recipe = _recipe(resolved, preset)
    _require_possible(recipe, settings.test_attacks, threat, data.num_classes)
    data = with_label_noise(data, recipe.label_noise, settings.seed)
    manager.register_models()
    _seed(settings.seed)
    network = _network(resolved, data)
    metadata = _metadata(resolved, data, threat)
    described = {"recipe": {"preset": preset, **as_dict(recipe)}, "model": network.config.to_dict(), **metadata}
    origins = {
        "plugin": resolved.method.provider(),
        "modifier_plugins": {name: manager.modifier(name).provider() for name in resolved.modifiers},
        "hardware": hardware(),
        "config_hash": config_hash(described),
    }
    resolved.folder.write_manifest(described | origins)
    return TrainConfig(
        model=network,
        defense=manager.load_target(settings.method)(resolved.options),
        data=data,
        recipe=recipe,
        threat=threat,
        output=resolved.folder.path,
        metadata=metadata,
        modifiers={name: manager.load_target(name, ModifierSpec)(one) for name, one in resolved.modifiers.items()},
        seed=settings.seed,
        precision=settings.precision,
        device=settings.device,
        channels_last=settings.channels_last,
        compile=settings.compile,
        workers=settings.workers,
        resume=settings.resume,
        trackers=list(settings.track),
        display=resolved.display,
        observers=manager.observers(),
        callbacks=list(callbacks),
    )


def _read_data(settings: TrainSettings, display: Display) -> DataBundle:
    """The data, with the additional training images."""
    from timm_robust.data import add_extra, load_data

    where: Any = {"data_dir": settings.data_dir, "download": settings.download, "workers": settings.workers}
    with display.reading() as progress:
        bundle = load_data(
            settings.data,
            image_size=settings.image_size,
            seed=settings.seed,
            device=settings.device or best_device(),
            progress=progress,
            **where,
        )
        if settings.extra_data is not None:
            bundle = add_extra(bundle, settings.extra_data, settings.extra_share, progress=progress, **where)
    return bundle


def _recipe(resolved: Resolved, preset: str) -> Recipe:
    """The preset, with what the method recommends, with what the user chose."""
    settings = resolved.settings
    recommended, _ = recommendations(resolved.method)
    chosen = {"epochs": settings.epochs, "batch_size": settings.batch_size, "lr": settings.lr}
    given = {name: value for name, value in chosen.items() if value is not None}
    return make_recipe(preset, recommended, {**(settings.recipe_args or {}), **given})


def _require_possible(recipe: Recipe, test_attacks: Sequence[str], threat: Threat, num_classes: int) -> None:
    """Refuses attacks for validation and test that this threat or so few classes do not allow."""
    from timm_robust.evaluation.attack_spec import ENSEMBLES, parse_attack, require_possible

    check = parse_attack(recipe.check_attack)
    if check.name in ENSEMBLES:
        raise UserError(
            f"recipe setting 'check_attack' is {check.name!r}, which takes hours: expected one like pgd-10-1"
        )
    for attack in (check, *map(parse_attack, test_attacks)):
        require_possible(attack, threat, num_classes)


def _network(resolved: Resolved, data: DataBundle) -> PixelModel:
    from timm_robust.models.factory import build_model

    settings, activation = resolved.settings, resolved.activation
    return build_model(
        settings.model,
        num_classes=data.num_classes,
        in_chans=data.in_chans,
        image_size=data.image_size,
        model_kwargs=dict(settings.model_kwargs or {}),
        pretrained=settings.pretrained,
        activation=None if activation == "none" else activation,
        stem=settings.stem,
        data_mean=data.mean,
        data_std=data.std,
    )


def _metadata(resolved: Resolved, data: DataBundle, threat: Threat) -> dict[str, Any]:
    """What the manifest and the checkpoints say of the run, beside model and recipe."""
    metadata = {
        "method": resolved.settings.method,
        "method_args": to_dict(resolved.options),
        "modifiers": {name: to_dict(value) for name, value in resolved.modifiers.items()},
        "threat": threat.to_dict(),
        "data": {"name": data.name, "class_names": list(data.class_names), "image_size": data.image_size},
        "seed": resolved.settings.seed,
        "versions": versions(),
    }
    if data.extra:
        metadata["extra"] = {"name": data.extra.name, "images": len(data.extra.split), "share": data.extra.share}
    return metadata


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


def _default_output(settings: TrainSettings) -> Path:
    if settings.resume:
        raise UserError("resume needs the folder of the run to continue: pass output")
    model, data = settings.model, settings.data
    name = model if isinstance(model, str) else type(model).__name__
    source = Path(data).stem if isinstance(data, (str, Path)) else "data"
    return free_folder(Path("runs") / f"{name}-{settings.method}-{source}".replace("/", "_").lower())


def _seed(seed: int) -> None:
    from accelerate.utils import set_seed

    set_seed(seed)
