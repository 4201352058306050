"""SplitMix64 as a function of key and position, so that any part of a sequence can be computed by itself.

G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014. Works on int64 arrays of NumPy
and int64 tensors of PyTorch alike, whose arithmetic wraps around as the generator's does; imports neither.
"""

from __future__ import annotations

from typing import Any

_UNSIGNED = 1 << 64


def signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer; larger values are taken modulo 2^64."""
    value %= _UNSIGNED
    return value - _UNSIGNED if value >> 63 else value


_STEP = signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def right_shift(bits: Any, by: int) -> Any:
    """Logical right shift of int64 values; the arrays' own shift copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def child(keys: Any, number: Any) -> Any:
    """Output `number` (from 0) of SplitMix64 seeded with each key.

    Args:
        keys: int64 array or tensor.
        number: int, or an int64 array or tensor that broadcasts with `keys`.
    """
    bits = keys + (signed((number + 1) * _STEP) if isinstance(number, int) else (number + 1) * _STEP)
    bits = (bits ^ right_shift(bits, 30)) * _FIRST
    bits = (bits ^ right_shift(bits, 27)) * _SECOND
    return bits ^ right_shift(bits, 31)
