"""Registers FGSM with a random start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="fgsm-rs",
        summary="cross-entropy on images from one large signed step after a random start: fast, collapses in long runs",
        reference=Reference(
            title="Fast is better than free: Revisiting adversarial training",
            arxiv="2001.03994",
            venue="ICLR 2020",
        ),
        api_version=1,
        target="timm_robust_plugins.fgsm_rs.fgsm_rs:FGSMRS",
        config="timm_robust_plugins.fgsm_rs.options:FgsmRsOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
