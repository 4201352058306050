"""Random numbers without a state: each is a function of the seed and of what it is for.

A key is a 64-bit integer; its children are the outputs of the splitmix64 generator seeded with it (G. Steele, D. Lea,
C. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014). `key(seed, image, attack, job)` is a child of a
child of a child, and the draws below are the children of that: the same in any batch, order and process, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_UNSIGNED = 1 << 64


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned integer."""
    value %= _UNSIGNED
    return value - _UNSIGNED if value >> 63 else value


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift; torch's own copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def child(keys: Tensor, number: Tensor | int) -> Tensor:
    """Output `number` (from 0) of splitmix64 seeded with each key; int64, the two broadcast."""
    # int64 wraps around, as the generator does
    bits = keys + (_signed((number + 1) * _STEP) if isinstance(number, int) else (number + 1) * _STEP)
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def key(seed: int, *parts: Tensor | int, device: torch.device | str = "cpu") -> Tensor:
    """The key of what `parts` name, in this order; int64, of the shape that they broadcast to."""
    keys = torch.tensor(_signed(seed), device=device)
    for part in parts:
        keys = child(keys, part)
    return keys


def uniform(keys: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiples of 2^-24 in [0, 1), [B, *shape] for keys [B]; exact in float32, so the same in each precision."""
    numbers = torch.arange(math.prod(shape), device=keys.device)
    bits = child(keys[:, None], numbers)
    return (_shift(bits, 40).to(dtype) * 2.0**-24).view(len(keys), *shape)


def signs(keys: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """-1 or 1 with equal chances, [B, *shape]."""
    return (uniform(keys, shape, dtype) < 0.5).to(dtype) * 2 - 1


def integers(keys: Tensor, shape: Sequence[int], below: Tensor | int) -> Tensor:
    """Integers from 0 to `below` - 1, int64 [B, *shape]; 0 where `below` is 0."""
    return (uniform(keys, shape, torch.float64) * below).long()


def normal(keys: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box and Muller, [B, *shape]."""
    radius, angle = uniform(keys, (2, *shape), torch.float64).unbind(1)
    return ((-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)).to(dtype)
