"""Registers guided adversarial training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="gat",
        summary="clean loss plus distance of predictions; one attack step, guided by that distance every other batch",
        reference=Reference(
            title="Guided Adversarial Attack for Evaluating and Enhancing Adversarial Defenses",
            arxiv="2011.14969",
            venue="NeurIPS 2020",
        ),
        api_version=1,
        target="timm_robust_plugins.gat.gat:GAT",
        config="timm_robust_plugins.gat.options:GatOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
