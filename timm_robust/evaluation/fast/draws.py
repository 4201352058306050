"""Counter-based random numbers: a function of the seed and a key, so that draws do not depend on batches or processes.

A key is a 64-bit integer; its children are the outputs of SplitMix64 seeded with it. `key(seed, image, attack, job)` is
a child of a child of a child, and the draws below are its children: the same in any batch, order and process, on any
device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from timm_robust.utils.splitmix import child, right_shift, signed


def key(seed: int, *parts: Tensor | int, device: torch.device | str = "cpu") -> Tensor:
    """Key for `parts`, in this order; int64, of the shape that they broadcast to."""
    keys = torch.tensor(signed(seed), device=device)
    for part in parts:
        keys = child(keys, part)
    return keys


def uniform(keys: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform multiples of 2^-24 in [0, 1), [B, *shape] for keys [B]; exact in float32, so equal in each precision."""
    numbers = torch.arange(math.prod(shape), device=keys.device)
    bits = child(keys[:, None], numbers)
    return (right_shift(bits, 40).to(dtype) * 2.0**-24).view(len(keys), *shape)


def signs(keys: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """-1 or 1 with equal probability, [B, *shape]."""
    return (uniform(keys, shape, dtype) < 0.5).to(dtype) * 2 - 1


def integers(keys: Tensor, shape: Sequence[int], below: Tensor | int) -> Tensor:
    """Integers from 0 to `below` - 1, int64 [B, *shape]; 0 where `below` is 0."""
    return (uniform(keys, shape, torch.float64) * below).long()


def normal(keys: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by the Box-Muller transform, [B, *shape]."""
    radius, angle = uniform(keys, (2, *shape), torch.float64).unbind(1)
    return ((-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)).to(dtype)
