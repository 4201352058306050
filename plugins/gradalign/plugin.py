"""Registers GradAlign."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="gradalign",
        summary="FGSM training plus a penalty that keeps input gradients aligned within the ball, against collapse",
        reference=Reference(
            title="Understanding and Improving Fast Adversarial Training", arxiv="2007.02617", venue="NeurIPS 2020"
        ),
        api_version=1,
        target="timm_robust_plugins.gradalign.gradalign:GradAlign",
        config="timm_robust_plugins.gradalign.options:GradAlignOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
