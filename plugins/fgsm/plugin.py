"""Registers FGSM adversarial training."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import DefenseSpec, Reference, hookimpl


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="fgsm",
        summary="cross-entropy on images from one signed step: the cheapest, and the textbook case of collapse",
        reference=Reference(
            title="Explaining and Harnessing Adversarial Examples", arxiv="1412.6572", venue="ICLR 2015"
        ),
        api_version=1,
        target="timm_robust_plugins.fgsm.fgsm:FGSM",
        config="timm_robust_plugins.fgsm.options:FgsmOptions",
    )
