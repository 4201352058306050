"""Recipes by name: the general ones of the host, and those of plugins. Torch-free.

Recipes of a method or a paper belong to its plugin, which yields them from the hook `timm_robust_recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm_robust import __version__
from timm_robust.errors import unknown
from timm_robust.options import check_value
from timm_robust.plugin import DefenseSpec, RecipeSpec, get_manager
from timm_robust.plugin.environment import HOST
from timm_robust.plugin.registry import RegisteredSpec
from timm_robust.recipes.check import SETTINGS, recipe_values, recommended_values
from timm_robust.recipes.recipe import Recipe, require_peak
from timm_robust.threat import SMALL_IMAGE

GENERAL = tuple(
    RegisteredSpec(spec, HOST, HOST, __version__)
    for spec in (
        RecipeSpec(
            name="default",
            summary="30 epochs, one cycle to 0.2: strong for images of at most 64 pixels at a small budget",
            source="our choice; one cycle as in fast adversarial training codes",
            api_version=1,
            values={},
        ),
        RecipeSpec(
            name="digits",
            summary="ten epochs of AdamW on the embedded 8x8 digits: any network learns in a minute",
            source="our choice; no mirroring, because a mirrored digit is another character",
            api_version=1,
            values={"epochs": 10, "batch_size": 64, "optimizer": "adamw", "lr": 0.002, "augment": "crop"},
        ),
        RecipeSpec(
            name="imagenet",
            summary="100 epochs, rate 0.1 divided by ten at 30, 60 and 90, decay 1e-4 on weights only",
            source="Xie et al., Smooth Adversarial Training, arXiv:2006.14536 (code; no colour jitter or lighting)",
            api_version=1,
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
)
"""Recipes of the host; they need no plugin, so that every method can be trained while others are blocked."""


def all_recipes() -> dict[str, RegisteredSpec[RecipeSpec]]:
    """Recipes by name: the host's, then those of each plugin; their values are not checked yet.

    Raises:
        PluginConflict: one name is offered twice.
    """
    return get_manager().recipes(GENERAL)


def find_recipe(name: str) -> RegisteredSpec[RecipeSpec]:
    """The recipe `name`.

    Raises:
        UserError: no such recipe; the message has the nearest names.
    """
    return get_manager().recipe(name, GENERAL)


def values_of(found: RegisteredSpec[RecipeSpec]) -> dict[str, Any]:
    """Checked values of a recipe.

    Raises:
        UserError: a setting is unknown or out of its bounds; the message names the distribution.
        PluginError: the same in a recipe of this package, or in strict mode.
    """
    with get_manager().blaming(found, "check"):
        return recipe_values(found.spec)


def recommendations(found: RegisteredSpec[DefenseSpec]) -> tuple[dict[str, Any], str | None]:
    """Checked recipe settings that a method recommends, and the activation to swap in; raises as `values_of` does."""
    with get_manager().blaming(found, "check"):
        return recommended_values(found.spec)


def default_preset(data: str, image_size: int) -> str:
    """Name of the recipe of a run that names none, by data set and image size in pixels."""
    if data == "digits":
        return "digits"
    return "default" if image_size <= SMALL_IMAGE else "imagenet"


def make_recipe(preset: str, recommended: Mapping[str, Any], chosen: Mapping[str, Any]) -> Recipe:
    """Recipe of a run: defaults < named recipe < recommendation of the method < the user.

    Args:
        preset: name of a recipe.
        recommended: settings that the method recommends.
        chosen: settings that the user gave, as text or typed.

    Raises:
        UserError: unknown recipe or setting, or a value out of its bounds.
    """
    values = values_of(find_recipe(preset))
    for name, value in (*recommended.items(), *chosen.items()):
        if name not in SETTINGS:
            raise unknown("recipe setting", name, SETTINGS, hint="see timm-robust recipes default")
        values[name] = check_value(SETTINGS[name], value, owner="recipe setting")
    recipe = replace(Recipe(), **values)
    require_peak(recipe)
    return recipe
