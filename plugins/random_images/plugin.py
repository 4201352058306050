"""Registers the baseline of distillers."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import DistillerSpec, Reference, hookimpl


@hookimpl
def timm_robust_distillers() -> Iterator[DistillerSpec]:
    yield DistillerSpec(
        name="random",
        summary="real images drawn at random: the baseline of the same size that every other distiller has to beat",
        reference=Reference(title="Random real images (no distillation)"),
        api_version=1,
        target="timm_robust_plugins.random_images.random_images:RandomImages",
        config="timm_robust_plugins.random_images.options:RandomImagesOptions",
        use="--method rded-student --recipe rded-student",
    )
