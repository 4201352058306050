"""Registers self-guided label refinement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="sglr",
        summary="PGD, TRADES or MART training on labels refined by each sample's averaged predictions",
        reference=Reference(
            title="Soften to Defend: Towards Adversarial Robustness via Self-Guided Label Refinement",
            arxiv="2403.09101",
            venue="CVPR 2024",
        ),
        api_version=1,
        target="timm_robust_plugins.sglr.sglr:SGLR",
        config="timm_robust_plugins.sglr.options:SglrOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
