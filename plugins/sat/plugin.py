"""Registers smooth adversarial training."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import DefenseSpec, Reference, hookimpl


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="sat",
        summary="one-step adversarial training of a network with smooth activations: better gradients at no extra cost",
        reference=Reference(title="Smooth Adversarial Training", arxiv="2006.14536"),
        api_version=1,
        target="timm_robust_plugins.sat.sat:SAT",
        config="timm_robust_plugins.sat.options:SatOptions",
        recommends={"activation": "silu"},
    )
