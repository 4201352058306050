"""Registers ZeroGrad and MultiGrad."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import DefenseSpec, Reference, hookimpl


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="zerograd",
        summary="FGSM with a random start that ignores pixels with a small gradient",
        reference=Reference(
            title="ZeroGrad: Mitigating and Explaining Catastrophic Overfitting in FGSM Adversarial Training",
            arxiv="2103.15476",
        ),
        api_version=1,
        target="timm_robust_plugins.zerograd.zerograd:ZeroGrad",
        config="timm_robust_plugins.zerograd.options:ZeroGradOptions",
    )
    yield DefenseSpec(
        name="multigrad",
        summary="one step along the pixels whose gradient sign agrees over all random starts",
        reference=Reference(
            title="ZeroGrad: Mitigating and Explaining Catastrophic Overfitting in FGSM Adversarial Training",
            arxiv="2103.15476",
        ),
        api_version=1,
        target="timm_robust_plugins.zerograd.multigrad:MultiGrad",
        config="timm_robust_plugins.zerograd.options:MultiGradOptions",
    )
