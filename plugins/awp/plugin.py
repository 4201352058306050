"""Registers adversarial weight perturbation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import ModifierSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_modifiers() -> Iterator[ModifierSpec]:
    yield ModifierSpec(
        name="awp",
        summary="takes each update's gradient where a step up the loss has moved the weights",
        reference=Reference(
            title="Adversarial Weight Perturbation Helps Robust Generalization",
            arxiv="2004.05884",
            venue="NeurIPS 2020",
        ),
        api_version=1,
        target="timm_robust_plugins.awp.awp:AWP",
        config="timm_robust_plugins.awp.options:AwpOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
