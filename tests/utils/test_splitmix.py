"""SplitMix64 on arrays and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from timm_robust.data.augment import stream, uniforms
from timm_robust.utils.splitmix import child, right_shift, signed


@pytest.mark.parametrize("seed", [0, 1234567, -5, (1 << 63) + 17])
def test_arrays_and_tensors_give_the_same_bits(seed):
    numbers = np.arange(50) * 10**17
    key = np.array([signed(seed)])
    bits = child(key, numbers)
    assert bits.dtype == np.int64
    assert np.array_equal(bits, child(torch.from_numpy(key), torch.from_numpy(numbers)).numpy())
    assert child(key, 10**17) == bits[1]
    assert np.array_equal(right_shift(bits, 11).view(np.uint64), bits.view(np.uint64) >> np.uint64(11))


def test_published_vector():
    assert child(np.array([1234567]), np.arange(2)).view(np.uint64).tolist() == [
        6457827717110365317,
        3203168211198807973,
    ]


def test_uniforms_are_one_sequence():
    """Written with unsigned integers, as the generator is defined."""
    turn, index = np.array([0, 3, 2**25 - 1]), np.array([5, 0, 2**32 - 1])
    start = stream(1, 0, 5).integers(2**64, size=1, dtype=np.uint64)
    place = ((turn.astype(np.uint64) << np.uint64(32)) + index.astype(np.uint64)) * np.uint64(128)
    bits = start + (place + np.arange(1, 8, dtype=np.uint64)[:, None]) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    expected = ((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    assert np.array_equal(uniforms(1, 5, turn, index, 7), expected)
