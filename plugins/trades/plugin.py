"""Registers TRADES."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="trades",
        summary="cross-entropy on clean images plus beta times the divergence of the adversarial predictions from them",
        reference=Reference(
            title="Theoretically Principled Trade-off between Robustness and Accuracy",
            arxiv="1901.08573",
            venue="ICML 2019",
        ),
        api_version=1,
        target="timm_robust_plugins.trades.trades:TRADES",
        config="timm_robust_plugins.trades.options:TradesOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
