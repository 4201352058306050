"""Registers SEAT and SEAT-FL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="seat",
        summary="one step on the margin, and a penalty that keeps the loss linear along it, without double backward",
        reference=Reference(
            title="Stable and Efficient Adversarial Training through Local Linearization", arxiv="2210.05373"
        ),
        api_version=1,
        target="timm_robust_plugins.seat.seat:SEAT",
        config="timm_robust_plugins.seat.options:SeatOptions",
    )
    yield DefenseSpec(
        name="seat-fl",
        summary="seat with flooding: the adversarial loss is kept from falling below a level",
        reference=Reference(
            title="Stable and Efficient Adversarial Training through Local Linearization", arxiv="2210.05373"
        ),
        api_version=1,
        target="timm_robust_plugins.seat.seat:SEAT",
        config="timm_robust_plugins.seat.options:SeatFlOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
