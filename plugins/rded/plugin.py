"""Registers the distiller and the student's method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm_robust.plugin import DefenseSpec, DistillerSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES

PAPER = Reference(
    title="On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
    arxiv="2312.03526",
    venue="CVPR 2024",
)


@hookimpl
def timm_robust_distillers() -> Iterator[DistillerSpec]:
    yield DistillerSpec(
        name="rded",
        summary="stitches each image from crops of real images that the observer classifies with the lowest loss",
        reference=PAPER,
        api_version=1,
        target="timm_robust_plugins.rded.rded:RDED",
        config="timm_robust_plugins.rded.options:RdedOptions",
        use="--method rded-student --recipe rded-student",
    )


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="rded-student",
        summary="learns the observer's soft labels of mixed and cropped views; standard, or adversarial with a weight",
        reference=PAPER,
        api_version=1,
        target="timm_robust_plugins.rded.student:Student",
        config="timm_robust_plugins.rded.options:StudentOptions",
        teachers={"observer": "standard"},
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES
