"""Registers helper-based adversarial training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="hat",
        summary="TRADES plus images beyond the ball, labelled by a standard network, against excessive margins",
        reference=Reference(
            title="Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off",
            url="https://openreview.net/forum?id=Azh9QBQ4tR7",
            venue="ICLR 2022",
        ),
        api_version=1,
        target="timm_robust_plugins.hat.hat:HAT",
        config="timm_robust_plugins.hat.options:HatOptions",
        teachers={"helper": "standard"},
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
