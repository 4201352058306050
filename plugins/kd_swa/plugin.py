"""Registers KD-SWA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="kd-swa",
        summary="PGD training with distillation from a standard and a robust teacher; use with --modifier swa",
        reference=Reference(
            title="Robust Overfitting may be mitigated by properly learned smoothening",
            url="https://openreview.net/forum?id=qZzy5urZw9",
            venue="ICLR 2021",
        ),
        api_version=1,
        target="timm_robust_plugins.kd_swa.kd_swa:KDSWA",
        config="timm_robust_plugins.kd_swa.options:KdSwaOptions",
        teachers={"natural_teacher": "standard", "robust_teacher": "pgd"},
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
