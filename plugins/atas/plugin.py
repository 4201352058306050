"""Registers ATAS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="atas",
        summary="FGSM from carried-over perturbations, each sample's step smaller where its gradient is larger",
        reference=Reference(
            title="Fast Adversarial Training with Adaptive Step Size", arxiv="2206.02417", venue="IEEE TIP 2023"
        ),
        api_version=1,
        target="timm_robust_plugins.atas.atas:ATAS",
        config="timm_robust_plugins.atas.options:AtasOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
