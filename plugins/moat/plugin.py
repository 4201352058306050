"""Registers MOAT."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import DefenseSpec, Reference, hookimpl


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="moat",
        summary="alternates benign, single-step and multi-step batches: strong examples at little over FGSM's cost",
        reference=Reference(title="Multi-stage Optimization based Adversarial Training", arxiv="2106.15357"),
        api_version=1,
        target="timm_robust_plugins.moat.moat:MOAT",
        config="timm_robust_plugins.moat.options:MoatOptions",
    )
