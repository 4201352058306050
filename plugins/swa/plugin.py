"""Registers stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import ModifierSpec, Reference, hookimpl


@hookimpl
def timm_robust_modifiers() -> Iterator[ModifierSpec]:
    yield ModifierSpec(
        name="swa",
        summary="evaluates and saves the mean of the later epochs' weights, with recomputed BatchNorm statistics",
        reference=Reference(
            title="Averaging Weights Leads to Wider Optima and Better Generalization",
            arxiv="1803.05407",
            venue="UAI 2018",
        ),
        api_version=1,
        target="timm_robust_plugins.swa.swa:SWA",
        config="timm_robust_plugins.swa.options:SwaOptions",
    )
