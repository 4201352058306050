"""Registers the CIFAR-sized networks on which the papers report."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import ModelsSpec, Reference, hookimpl

NETWORKS = ("preact_resnet18", "resnet18", "wide_resnet28_10", "wide_resnet34_10")


@hookimpl
def timm_robust_models() -> Iterator[ModelsSpec]:
    yield ModelsSpec(
        name="cifar-nets",
        summary="pre-activation, plain and wide residual networks for 32-pixel images, with ReLU and with SiLU",
        reference=Reference(title="Wide Residual Networks", arxiv="1605.07146", venue="BMVC 2016"),
        api_version=1,
        module="timm_robust_plugins.cifar_nets.networks",
        models=tuple(f"{network}_cifar{suffix}" for network in NETWORKS for suffix in ("", "_silu")),
    )
