"""Registers MART."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="mart",
        summary="cross-entropy with a margin on adversarial images, plus a divergence weighted to misclassified ones",
        reference=Reference(
            title="Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
            url="https://openreview.net/forum?id=rklOg6EFwS",
            venue="ICLR 2020",
        ),
        api_version=1,
        target="timm_robust_plugins.mart.mart:MART",
        config="timm_robust_plugins.mart.options:MartOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
