"""Recipes: the training settings that the host owns, so that defenses are compared fairly. Torch-free.

A setting comes from, later wins: the defaults here, a named preset, what the defense recommends, the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from timm_robust.errors import UserError, unknown
from timm_robust.plugin.options import check_value, option

SCHEDULES = ("onecycle", "cyclic", "cosine", "step", "multistep", "constant")
AUGMENTATIONS = ("crop-flip", "crop", "flip", "none", "inception")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings. `timm-robust recipes` explains each, and where a preset's values come from."""

    epochs: int = option(30, help="passes over the training set", low=1)
    batch_size: int = option(128, help="images per optimizer step and process", low=1)
    accumulate: int = option(1, help="batches whose gradients are added before each optimizer step", low=1)
    optimizer: str = option("momentum", help="any timm optimizer: `momentum` is plain SGD, `sgd` is SGD with Nesterov")
    lr: float = option(0.2, help="largest learning rate", low=0.0)
    momentum: float = option(0.9, help="momentum of SGD (beta1 elsewhere)", low=0.0, high=1.0)
    weight_decay: float = option(5e-4, help="decay of all parameters except activations' own", low=0.0)
    decay_norm_bias: bool = option(True, help="decay biases and normalisation parameters too, as CIFAR recipes do")
    schedule: str = option("onecycle", help="learning-rate schedule", choices=SCHEDULES)
    warmup_epochs: float = option(
        0.0, help="linear warm-up from 0 before cosine, step or multistep", unit="epochs", low=0
    )
    milestones: str = option("0.5,0.75", help="multistep: where the rate falls, as shares of the epochs")
    lr_decay: float = option(0.1, help="step and multistep: factor at each fall", low=0.0, high=1.0)
    peak: float = option(
        0.3, help="onecycle and cyclic: where the rate peaks, as a share of the run", low=0.0, high=1.0
    )
    cycle_momentum: bool = option(
        True, help="onecycle: momentum moves from 0.95 to 0.85 and back, as torch does by default"
    )
    label_smoothing: float = option(
        0.0, help="mass moved from the label to a uniform target, in the update's loss only", low=0.0, high=1.0
    )
    augment: str = option(
        "crop-flip", help="batched augmentation of small images; `inception` for large ones", choices=AUGMENTATIONS
    )
    pad: int = option(
        4, help="padding before the random crop of 32-pixel images, scaled with the size", unit="pixels", low=0
    )
    pad_mode: str = option("zeros", help="what the padding holds", choices=("zeros", "reflect"))
    clip_grad: float = option(0.0, help="largest gradient norm; 0 clips nothing", low=0.0)
    ema: float = option(0.0, help="decay of the weights' exponential moving average; 0 keeps none", low=0.0, high=1.0)
    check_attack: str = option("pgd-10-1", help="attack of the check on the validation split after each epoch")
    check_examples: int = option(1000, help="validation images in that check; 0 takes all", low=0)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of recipe values with the reason for them."""

    name: str
    summary: str
    source: str
    values: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="default",
            summary="30 epochs, one cycle to 0.2: strong for images of at most 64 pixels at a small budget",
            source="our choice; one cycle as in fast adversarial training codes",
            values={},
        ),
        Preset(
            name="digits",
            summary="ten epochs of AdamW on the embedded 8x8 digits: any network learns in a minute",
            source="our choice; no mirroring, because a mirrored digit is another character",
            values={"epochs": 10, "batch_size": 64, "optimizer": "adamw", "lr": 0.002, "augment": "crop"},
        ),
        Preset(
            name="fast",
            summary="15 epochs, triangular rate 0 -> 0.2 -> 0 peaking half way",
            source="Wong, Rice, Kolter, Fast is better than free, ICLR 2020 (released code)",
            values={"epochs": 15, "schedule": "cyclic", "peak": 0.5, "lr": 0.2},
        ),
        Preset(
            name="rice",
            summary="200 epochs, rate 0.1 divided by ten at 50 % and 75 %, reflect padding",
            source="Rice, Wong, Kolter, Overfitting in adversarially robust deep learning, ICML 2020 (released code)",
            values={"epochs": 200, "schedule": "multistep", "milestones": "0.5,0.75", "lr": 0.1, "pad_mode": "reflect"},
        ),
        Preset(
            name="imagenet",
            summary="100 epochs, rate 0.1 divided by ten at 30, 60 and 90, decay 1e-4 on weights only",
            source="Xie et al., Smooth Adversarial Training, arXiv:2006.14536 (code; no colour jitter or lighting)",
            values={
                "epochs": 100,
                "schedule": "multistep",
                "milestones": "0.3,0.6,0.9",
                "lr": 0.1,
                "batch_size": 256,
                "weight_decay": 1e-4,
                "decay_norm_bias": False,
                "optimizer": "sgd",
                "augment": "inception",
                "warmup_epochs": 5.0,
            },
        ),
    )
}


def default_preset(data: str, image_size: int) -> str:
    """The preset for a run that names none: by data set and image size."""
    if data == "digits":
        return "digits"
    return "default" if image_size <= 64 else "imagenet"


def make_recipe(preset: str, recommended: Mapping[str, Any], chosen: Mapping[str, Any]) -> Recipe:
    """The recipe of a run: defaults < preset < the defense's recommendation < the user.

    Raises:
        UserError: unknown preset or setting, or a value out of its bounds.
    """
    if preset not in PRESETS:
        raise unknown("recipe", preset, PRESETS, hint="see timm-robust recipes")
    known = {field.name: field for field in fields(Recipe)}
    values: dict[str, Any] = {}
    for source in (PRESETS[preset].values, recommended, chosen):
        for name, value in source.items():
            if name not in known:
                raise unknown("recipe setting", name, known, hint="see timm-robust recipes")
            values[name] = check_value(known[name], value, owner="recipe setting")
    recipe = replace(Recipe(), **values)
    if recipe.peak in (0.0, 1.0) and recipe.schedule in ("onecycle", "cyclic"):
        raise UserError(f"recipe setting 'peak' is {recipe.peak:g}: expected a share between 0 and 1, both excluded")
    return recipe


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for manifests."""
    return asdict(recipe)
