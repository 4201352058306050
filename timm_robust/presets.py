"""Recipes by name: the settings of published codes, so that their numbers can be repeated. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from timm_robust.errors import UserError, unknown
from timm_robust.plugin.options import check_value
from timm_robust.recipe import Recipe


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
        Preset(
            name="atas",
            summary="30 epochs, rate 0.1 divided by ten after 24 and 28",
            source="Huang et al., Fast Adversarial Training with Adaptive Step Size (released code, CIFAR)",
            values={"epochs": 30, "schedule": "multistep", "milestones": "0.8,0.93333", "lr": 0.1},
        ),
        Preset(
            name="atas-imagenet",
            summary="90 epochs, rate 0.1 divided by ten after 50 and 75, decay 1e-4, crops of the padded image",
            source="Huang et al., arXiv:2206.02417 (released code, ImageNet; there crops of 224 from 256 pixels)",
            values={
                "epochs": 90,
                "schedule": "multistep",
                "milestones": "0.55556,0.83333",
                "lr": 0.1,
                "weight_decay": 1e-4,
                "augment": "crop-flip",
            },
        ),
        Preset(
            name="seat",
            summary="30 epochs, one cycle to 0.3",
            source="Li and Yu, Stable and Efficient Adversarial Training, arXiv:2210.05373 (released code)",
            values={"epochs": 30, "schedule": "onecycle", "lr": 0.3},
        ),
        Preset(
            name="n-fgsm",
            summary="30 epochs, triangular rate 0 -> 0.2 -> 0 peaking half way",
            source="de Jorge et al., Make Some Noise, arXiv:2202.01181 (released code)",
            values={"epochs": 30, "schedule": "cyclic", "peak": 0.5, "lr": 0.2},
        ),
        Preset(
            name="gradalign",
            summary="30 epochs, rate straight up to 0.3 at two fifths and down to 0",
            source="Andriushchenko and Flammarion, arXiv:2007.02617 (released code; no input normalisation there)",
            values={"epochs": 30, "schedule": "piecewise", "points": "0:0,0.4:1,1:0", "lr": 0.3},
        ),
        Preset(
            name="fgsm-mep",
            summary="110 epochs, rate 0.1 divided by ten after 100 and 105",
            source="Jia et al., Prior-Guided Adversarial Initialization, ECCV 2022 (released code)",
            values={"epochs": 110, "schedule": "multistep", "milestones": "0.90909,0.95455", "lr": 0.1},
        ),
        Preset(
            name="gat",
            summary="100 epochs, batch 64, rate 0.1 divided by ten after 71 and 86",
            source="Sriramanan et al., Guided Adversarial Attack, arXiv:2011.14969 (released code)",
            values={"epochs": 100, "batch_size": 64, "schedule": "multistep", "milestones": "0.71,0.86", "lr": 0.1},
        ),
        Preset(
            name="nuat",
            summary="100 epochs, batch 64, rate up to 0.1, down to 0.02, then two drops",
            source="Sriramanan et al., NuAT, NeurIPS 2021 (released code)",
            values={
                "epochs": 100,
                "batch_size": 64,
                "schedule": "piecewise",
                "points": "0:0,0.4:1,0.8:0.2,0.86:0.2,0.86:0.02,0.91:0.02,0.91:0.002,1:0.002",
                "lr": 0.1,
            },
        ),
        Preset(
            name="nuat-wa",
            summary="100 epochs, batch 64, rate up to 0.1 at a quarter and down to 0; weights averaged",
            source="Sriramanan et al., NuAT with weight averaging (released code; with -o weight=4 ramp_share=1)",
            values={
                "epochs": 100,
                "batch_size": 64,
                "schedule": "piecewise",
                "points": "0:0,0.25:1,1:0",
                "lr": 0.1,
                "ema": 0.9998,
            },
        ),
        Preset(
            name="free",
            summary="10 epochs, triangular rate 0 -> 0.04 -> 0: with 8 replays as many updates as 80",
            source="Wong et al., Fast is better than free (released code of their re-implementation)",
            values={"epochs": 10, "schedule": "cyclic", "peak": 0.5, "lr": 0.04},
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
