"""The small-image stem: surgery that fits a timm model to small images without changing the shape of a weight.

Strides are set to 1, poolings removed and wide kernels cut to their central 3x3, as `stem_plan` found for the model.
The surgery is recorded as plain values, so `apply_stem` repeats it on a rebuilt model without another trial.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

from timm_robust.models.resolution import Level, is_pool


class CentreConv2d(nn.Conv2d):
    """A convolution that uses the central 3x3 of a wider kernel; the weight keeps its shape, and timm's name.

    CIFAR networks have a 3x3 stem for a reason: behind a 7x7 one at full resolution, one-step adversarial training
    collapses where it otherwise holds (tests/test_collapse.py trains behind both).
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> CentreConv2d:
        """`conv` with zeros outside its centre, and the centre scaled to the variance of a fresh 3x3 kernel."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        new.weight, new.bias = conv.weight, conv.bias
        scale = math.sqrt(math.prod(conv.kernel_size)) / 3
        with torch.no_grad():
            centre = new.centre().clone()
            new.weight.zero_()
            new.centre().copy_(centre * scale)
        return new

    def centre(self) -> torch.Tensor:
        """The part of the weight that is used, [out, in, 3, 3]."""
        top, left = ((side - 3) // 2 for side in self.kernel_size)
        return self.weight[:, :, top : top + 3, left : left + 3]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(
            images, self.centre(), self.bias, self.stride, self.dilation, self.dilation, self.groups
        )


def apply_stem(model: nn.Module, surgery: dict[str, Any]) -> None:
    """Applies recorded surgery in place: strides, paddings, central kernels, and poolings replaced by the identity.

    Only fresh weights are cut to their centre: surgery for pretrained ones has no `centre`.
    """
    for name, stride in surgery.get("stride", {}).items():
        module: Any = model.get_submodule(name)
        module.stride = stride if isinstance(module.stride, int) else (stride, stride)
    if "same" in surgery.get("padding", {}).values():  # torch copies the input of even kernels, and says so
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
    for name, padding in surgery.get("padding", {}).items():
        convolution: Any = model.get_submodule(name)
        convolution.padding = padding if isinstance(padding, str) else tuple(padding)
    for name in surgery.get("centre", []):
        _replace(model, name, CentreConv2d.of(model.get_submodule(name)))  # type: ignore[arg-type]
    for name in surgery.get("remove", []):
        _replace(model, name, nn.Identity())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module


def remove_strides(model: nn.Module, levels: list[Level], excess: int) -> dict[str, Any]:
    """Surgery that takes a factor `excess` out of the total stride, beginning with the first levels."""
    strides: dict[str, int] = {}
    paddings: dict[str, Any] = {}
    remove: list[str] = []
    centre: list[str] = []
    for level in levels:
        if excess <= 1:
            break
        cut = min(level.factor, excess)
        excess //= cut
        for name, old in level.modules.items():
            module, new = model.get_submodule(name), max(1, old // cut)
            if new == 1 and is_pool(module):
                remove.append(name)
                continue
            strides[name] = new
            if new == 1 and _is_wide(module):
                centre.append(name)
            padding = _padding(module, new)
            if padding is not None:
                paddings[name] = padding
    return {"stride": strides, "padding": paddings, "remove": remove, "centre": centre}


def _is_wide(module: nn.Module) -> bool:
    """Whether it is a plain convolution with an odd kernel wider than 3x3, which has a centre."""
    return type(module) is nn.Conv2d and all(k > 3 and k % 2 for k in module.kernel_size) and module.groups == 1


def _padding(module: Any, stride: int) -> list[int] | str | None:
    """Padding that keeps size / stride after the change; None where the present one does (or is computed per call)."""
    if is_pool(module) or type(module).__name__.endswith("Same") or isinstance(module.padding, str):
        return None
    if not isinstance(module.padding, tuple) or getattr(module, "same_pad", False):
        return None
    total = [d * (k - 1) + 1 - stride for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if stride == 1 and any(t % 2 for t in total):
        return "same"  # even kernels (patchify stems) need one more pixel on one side
    wanted = [max(t // 2, 0) for t in total]
    return None if wanted == list(module.padding) else wanted
