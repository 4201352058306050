"""Registers PGD adversarial training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="pgd",
        summary="cross-entropy on images from a 10-step PGD attack: the classic, about 8 times the cost of standard",
        reference=Reference(
            title="Towards Deep Learning Models Resistant to Adversarial Attacks",
            arxiv="1706.06083",
            venue="ICLR 2018",
        ),
        api_version=1,
        target="timm_robust_plugins.pgd.pgd:PGD",
        config="timm_robust_plugins.pgd.options:PgdOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
