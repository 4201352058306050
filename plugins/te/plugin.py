"""Registers temporal ensembling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="te",
        summary="PGD or TRADES training, later with a penalty on the distance to each sample's averaged prediction",
        reference=Reference(
            title="Exploring Memorization in Adversarial Training", arxiv="2106.01606", venue="ICLR 2022"
        ),
        api_version=1,
        target="timm_robust_plugins.te.te:TE",
        config="timm_robust_plugins.te.options:TeOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
