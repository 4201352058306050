"""Registers LBGAT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="lbgat",
        summary="adversarial logits follow the clean logits of a natural network that is trained along with the model",
        reference=Reference(
            title="Learnable Boundary Guided Adversarial Training",
            arxiv="2011.11164",
            venue="ICCV 2021",
        ),
        api_version=1,
        target="timm_robust_plugins.lbgat.lbgat:LBGAT",
        config="timm_robust_plugins.lbgat.options:LbgatOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
