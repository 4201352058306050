"""Registers adversarial weight perturbation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import ModifierSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_modifiers() -> Iterator[ModifierSpec]:
    yield ModifierSpec(
        name="awp",
        summary="computes each update's gradient at weights perturbed by a step that increases the loss",
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
