"""Registers nuclear-norm adversarial training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="nuat",
        summary="as gat, with the nuclear norm of the batch's logit differences: smooth in every direction at once",
        reference=Reference(title="Towards Efficient and Effective Adversarial Training", venue="NeurIPS 2021"),
        api_version=1,
        target="timm_robust_plugins.nuat.nuat:NuAT",
        config="timm_robust_plugins.nuat.options:NuatOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
