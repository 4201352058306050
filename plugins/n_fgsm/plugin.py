"""Registers N-FGSM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="n-fgsm",
        summary="one step of eps from noise of 2 eps, not projected: as cheap as FGSM, made against collapse",
        reference=Reference(
            title="Make Some Noise: Reliable and Efficient Single-Step Adversarial Training",
            arxiv="2202.01181",
            venue="NeurIPS 2022",
        ),
        api_version=1,
        target="timm_robust_plugins.n_fgsm.n_fgsm:NFGSMTraining",
        config="timm_robust_plugins.n_fgsm.options:NFgsmOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
