"""Non-smooth operators of a forward pass, counted at the level of torch's dispatcher: verifies an activation swap."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class NonsmoothTrace:
    """Non-smooth operators that acted on something computed from the images in one forward."""

    activation: Counter[str]
    allowed: Counter[str]
    """Max-poolings and guards against division by zero."""


def trace_nonsmooth(model: nn.Module, images: torch.Tensor, train: bool = True) -> NonsmoothTrace:
    """Counts the non-smooth operators of one forward pass, at the level of torch's dispatcher: nothing can hide.

    Only operators on tensors that depend on the images count. The model is copied, so its statistics stay. A
    SmoothBackwardReLU shows as relu, which is what its forward is.

    Args:
        model: network.
        images: [N, C, H, W]; the meta device is enough.
        train: run in train mode.
    """
    model = copy.deepcopy(model).train(train).requires_grad_(False)
    counter = _Counter()
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad(), counter:
        model(images)
    return NonsmoothTrace(activation=counter.activation, allowed=counter.allowed)


_HARD = {
    "relu",
    "leaky_relu",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "prelu",
    "_prelu_kernel",
    "rrelu",
    "rrelu_with_noise",
    "rrelu_with_noise_functional",
    "threshold",
    "hardshrink",
    "softshrink",
    "maximum",
    "minimum",
    "clamp",
    "clamp_min",
    "clamp_max",
}
_ALLOWED = {"max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"}
_GUARD = 1e-3
"""Largest lower bound that counts as a guard against division by zero."""


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.activation: Counter[str] = Counter()
        self.allowed: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        # Without gradients (inside custom autograd functions) dependence is unknown, so everything counts.
        if not torch.is_grad_enabled() or any(torch.is_tensor(a) and a.requires_grad for a in args):
            if name in _ALLOWED or (name in ("clamp", "clamp_min") and _is_guard(args, kwargs or {})):
                self.allowed[name] += 1
            elif name in _HARD or (name == "elu" and not _elu_is_smooth(*args[1:])):
                self.activation[name] += 1
        return func(*args, **(kwargs or {}))


def _is_guard(args: Any, kwargs: dict[str, Any]) -> bool:
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return isinstance(low, float) and 0 < low <= _GUARD and high is None


def _elu_is_smooth(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> bool:
    return math.isclose(alpha * input_scale, 1.0)
