"""Registers free adversarial training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="free",
        summary="replays each batch; each backward updates weights and perturbation, so the attack costs no pass",
        reference=Reference(title="Adversarial Training for Free!", arxiv="1904.12843", venue="NeurIPS 2019"),
        api_version=1,
        target="timm_robust_plugins.free.free:Free",
        config="timm_robust_plugins.free.options:FreeOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
