"""Registers FGSM-MEP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="fgsm-mep",
        summary="FGSM from each sample's perturbation of earlier epochs, with start and end logits kept close",
        reference=Reference(
            title="Prior-Guided Adversarial Initialization for Fast Adversarial Training",
            arxiv="2207.08859",
            venue="ECCV 2022",
        ),
        api_version=1,
        target="timm_robust_plugins.fgsm_mep.fgsm_mep:FGSMMEP",
        config="timm_robust_plugins.fgsm_mep.options:FgsmMepOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
