"""Registers standard training."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import DefenseSpec, Reference, hookimpl


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="standard",
        summary="clean images, cross-entropy: no defense, the reference for all others",
        reference=Reference(title="Standard training (no defense)"),
        api_version=1,
        target="timm_robust_plugins.standard.standard:Standard",
        config="timm_robust_plugins.standard.options:StandardOptions",
    )
