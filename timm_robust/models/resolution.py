"""Resolution of a network's feature maps: where it is divided, and how much is left at the end.

Found by forward passes with hooks, on the meta device where the model runs there: shapes without arithmetic. Nothing is
looked up by model name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
_POOL_NAMES = ("BlurPool2d", "MedianPool2d")  # timm's, by name: the module paths moved between versions


@dataclass(frozen=True)
class Level:
    """Modules that divide the resolution at one depth of the network, parallel branches included."""

    stride_in: int
    factor: int
    modules: dict[str, int]  # name -> stride


def on_meta(create: Callable[..., nn.Module], **kwargs: Any) -> nn.Module:
    """Model without storage, for shapes and operators at no cost.

    Older timm computes with real numbers while it builds (drop-path rates); such models are built, then emptied.
    """
    try:
        with torch.device("meta"):
            return create(**kwargs)
    except (NotImplementedError, RuntimeError):
        return create(**kwargs).to("meta")


def trace_levels(model: nn.Module, size: int, in_chans: int) -> list[Level]:
    """Levels at which convolutions and poolings divide the resolution, first to last, in one forward at this size.

    Side paths that shrink further than the main path at the same depth (keys and values in attention) are left out.
    """
    seen: dict[str, tuple[int, int, int]] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if not (torch.is_tensor(output) and inputs and torch.is_tensor(inputs[0]) and inputs[0].ndim == 4):
                return
            before, after = inputs[0].shape[-2], output.shape[-2]
            if before > after > 0:
                stride_in = power_of_two(size / before)
                seen.setdefault(name, (stride_in, max(power_of_two(before / after), 2), stride_of(module)))

        return record

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if stride_of(m) > 1]
    try:
        _forward(model, size, in_chans)
    finally:
        for handle in handles:
            handle.remove()
    levels = []
    for stride_in in sorted({entry[0] for entry in seen.values()}):
        here = {name: entry for name, entry in seen.items() if entry[0] == stride_in}
        factor = min(entry[1] for entry in here.values())
        levels.append(Level(stride_in, factor, {name: e[2] for name, e in here.items() if e[1] == factor}))
    return levels


def is_pool(module: nn.Module) -> bool:
    return isinstance(module, _POOLS) or type(module).__name__ in _POOL_NAMES


def stride_of(module: nn.Module) -> int:
    """Stride of a convolution or pooling, 1 for everything else."""
    if not (is_pool(module) or (hasattr(module, "kernel_size") and hasattr(module, "padding"))):
        return 1
    stride = getattr(module, "stride", 1)
    stride = stride[0] if isinstance(stride, (tuple, list)) else stride
    return stride if isinstance(stride, int) else 1


def skips_pixels(model: nn.Module, base: nn.Module) -> bool:
    """Whether a kwarg shrank a kernel below its stride (a patch size that leaves the stride alone), losing pixels."""

    def skipping(network: nn.Module) -> set[str]:
        convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        return {name for name, m in convolutions if m.kernel_size[0] < stride_of(m)}

    return bool(skipping(model) - skipping(base))


def declared_stride(model: nn.Module) -> float:
    """Total stride in timm's feature information, 0 if it has none."""
    infos = getattr(model, "feature_info", None)
    return float(infos[-1].get("reduction", 0)) if isinstance(infos, list) and infos else 0.0


def power_of_two(ratio: float) -> int:
    return int(2 ** max(round(math.log2(max(ratio, 1.0))), 0))


@torch.no_grad()
def _forward(model: Any, size: int, in_chans: int) -> Any:
    """One full forward; returns what `forward_features` gave inside it."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    features = model.forward_features
    kept: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        kept.append(features(*args, **kwargs))
        return kept[-1]

    model.forward_features = keep  # shadows the method of this instance only
    try:
        images = torch.zeros(1, in_chans, size, size, device=device)
        model(images)
    finally:
        del model.forward_features
    return kept[-1] if kept else features(images)


def last_side(model: nn.Module, size: int, in_chans: int, trust: bool = True) -> float:
    """Square root of the number of positions of the last feature map; the full forward must work too.

    Args:
        model: network.
        size: side of the images in pixels.
        in_chans: number of image channels.
        trust: use the shape that `forward_features` returns; otherwise the smallest map of a convolution.
    """
    smallest = [size]

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_tensor(output) and output.ndim == 4 and inputs[0].shape[-1] > 1:  # not in squeezes
            smallest[0] = min(smallest[0], output.shape[-1])

    handles = [m.register_forward_hook(record) for m in model.modules() if hasattr(m, "kernel_size")]
    try:
        features = _forward(model, size, in_chans)
    finally:
        for handle in handles:
            handle.remove()
    if not trust:
        return float(smallest[0])
    if isinstance(features, dict):  # beside masks and coordinates
        features = max(features.values(), key=lambda part: part.numel() if torch.is_tensor(part) else 0)
    if isinstance(features, (tuple, list)):  # several scales, coarsest last
        features = [part for part in features if torch.is_tensor(part) and part.ndim >= 3][-1]
    shape, width = tuple(features.shape), getattr(model, "num_features", -1)
    if len(shape) == 4:
        channels_last = shape[-1] == width and shape[1] != width
        return math.sqrt(shape[1] * shape[2] if channels_last else shape[2] * shape[3])
    tokens = shape[1] - getattr(model, "num_prefix_tokens", 0) if len(shape) == 3 else 0
    return math.sqrt(tokens) if tokens > 1 else float(smallest[0])  # class tokens or a pooled vector
