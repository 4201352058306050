"""Random draws of the fast mode: SplitMix64, and their distributions."""

from __future__ import annotations

import torch

from timm_robust.evaluation.fast import draws

MASK = (1 << 64) - 1


def splitmix(seed: int, n: int) -> list[int]:
    state, out = seed & MASK, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_draws_are_splitmix64():
    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]  # the published test vector
    for seed in (0, 1234567, -5, (1 << 63) + 17):
        bits = draws.child(draws.key(seed), torch.arange(50)).tolist()
        assert [b & MASK for b in bits] == splitmix(seed, 50)
        assert draws.child(draws.key(seed), 49).item() == bits[49]
    expected = splitmix(splitmix(splitmix(7, 4)[3], 12)[11], 1)[0]
    assert draws.key(7, torch.tensor([3]), 11, 0).item() & MASK == expected


def test_draws_have_their_distributions():
    keys = draws.key(0, torch.arange(400), 1)
    numbers = draws.uniform(keys, (500,), torch.float64)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.003 and abs(numbers.var() - 1 / 12) < 0.001
    centred = numbers - 0.5
    for other in (
        centred.roll(1, 0),
        centred.roll(1, 1),
        draws.uniform(draws.key(1, torch.arange(400), 1), (500,)) - 0.5,
    ):
        assert abs((centred * other).mean() * 12) < 0.01  # correlation; its deviation is 0.0022
    normal = draws.normal(keys, (500,), torch.float64)
    assert abs(normal.mean()) < 0.01 and abs(normal.var() - 1) < 0.02 and abs((normal**4).mean() - 3) < 0.15
    counts = draws.integers(keys, (500,), torch.tensor(7)).flatten().bincount()
    assert len(counts) == 7 and (counts / 2e5 - 1 / 7).abs().max() < 0.004
    assert set(draws.signs(keys, (9,)).flatten().tolist()) == {-1.0, 1.0}
    assert draws.integers(keys, (), torch.tensor(0)).abs().max() == 0


def test_draws_do_not_depend_on_the_batch_or_the_precision():
    keys = draws.key(3, torch.arange(10), 2)
    assert torch.equal(draws.uniform(keys, (3, 4))[4:7], draws.uniform(keys[4:7], (3, 4)))
    assert torch.equal(draws.uniform(keys, (3, 4)).double(), draws.uniform(keys, (3, 4), torch.float64))
