"""Square Attack: sizes and proposals of the reference, and queries it need not make."""

from __future__ import annotations

import math

import pytest
import torch
from pyautoattack.square import SquareAttack

from tests.support import all_lanes
from timm_robust.evaluation.fast import draws, square
from timm_robust.threat import Threat

LINF, L2 = Threat("Linf", 1 / 32, "1/32"), Threat("L2", 0.25, "0.25")


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_squares_shrink_as_the_references(size, norm):
    reference = SquareAttack(None, norm=norm, n_queries=5000, eps=1, resc_schedule=False)
    for query in range(5000):
        p = reference.p_selection(query)
        expected = max(round(math.sqrt(p * size * size)), 1 if norm == "Linf" else 3)
        if norm == "L2" and expected % 2 == 0:
            expected += 1
        assert square.side(query, size, size, norm) == min(expected, size)


def test_square_proposals_are_squares_of_the_ball(problem):
    shared = problem(LINF)
    attack = square.Square(shared, stream=1, queries=300)
    state = all_lanes(attack, shared)
    low, high = (shared.images - 1 / 32).clamp(min=0), (shared.images + 1 / 32).clamp(max=1)
    assert ((state.x == low) | (state.x == high)).all()
    for _ in range(50):
        attack.step(state)
        side = attack.sides[state.query]
        for image, best, clean, s in zip(state.x, state.best, shared.images, side, strict=True):
            changed = (image != best).any(0).nonzero()
            if len(changed):
                assert (changed.amax(0) - changed.amin(0)).max() < s
            # the published formula: 2 eps up or down, clipped; a channel takes one of the two
            for channel in range(3):
                mask = image[channel] != best[channel]
                ways = [
                    (best[channel] + sign / 16).clamp(clean[channel] - 1 / 32, clean[channel] + 1 / 32).clamp(0, 1)
                    for sign in (-1, 1)
                ]
                assert any(torch.equal(image[channel][mask], way[mask]) for way in ways)


def test_square_counts_what_it_need_not_ask(problem, monkeypatch):
    """Proposals that change nothing are skipped: fewer forwards, the same walk."""

    def walk(redraws):
        monkeypatch.setattr(square, "REDRAWS", redraws)
        shared = problem(LINF)
        attack = square.Square(shared, stream=1, queries=600)
        state, steps = all_lanes(attack, shared), 0
        margin = torch.zeros(len(shared.images), dtype=torch.float64)
        while not state.done.all():
            attack.step(state)
            steps += 1
            margin = state.margin
        return margin, steps

    (asked, all_steps), (skipped, steps) = walk(0), walk(3)
    torch.testing.assert_close(asked, skipped)
    assert steps < all_steps == 601


def test_eta_is_the_references():
    reference = SquareAttack(None, norm="L2", eps=1, device="cpu")
    for size in (1, 3, 5, 6, 8, 13):
        with torch.random.fork_rng(devices=[]):
            expected = reference.eta(size)
        ours = square.eta(size)
        assert torch.allclose(ours, expected, atol=1e-6) or torch.allclose(ours.T, expected, atol=1e-6)


def test_square_moves_mass_between_windows(problem):
    """One L2 proposal, again by slices of one image."""
    shared = problem(L2)
    attack = square.Square(shared, stream=1, queries=3000)
    state = all_lanes(attack, shared)
    for query in (0, 20, 700, 2500):
        state.query.fill_(query)
        x = attack._l2(state.clean, state.best, state.keys, state.query)
        for row in range(3):
            keys = draws.child(state.keys[row : row + 1], query + 1)
            s = square.side(query, 8, 8, "L2")
            top, left, top2, left2 = (
                int(draws.uniform(draws.child(keys, k), (), torch.float64) * (8 - s)) for k in range(4)
            )
            signs = draws.signs(draws.child(keys, 4), (3, 1, 1), torch.float64)[0]
            eta = square.eta(s).double()
            eta = eta.T if draws.signs(draws.child(keys, 5), ())[0] > 0 else eta
            clean, delta = shared.images[row], state.best[row] - shared.images[row]
            here, there = (slice(None), slice(top, top + s), slice(left, left + s)), torch.zeros(8, 8, dtype=torch.bool)
            there[top : top + s, left : left + s] = there[top2 : top2 + s, left2 : left2 + s] = True
            used = (delta * there).flatten(1).norm(dim=1)
            old = delta[here].clone()
            new = eta * signs + old / (1e-12 + old.flatten(1).norm(dim=1)[:, None, None])
            budget = (max(0.25**2 - delta.norm() ** 2, 0) / 3 + used**2) ** 0.5
            new = new / new.flatten(1).norm(dim=1)[:, None, None] * budget[:, None, None]
            delta[:, top2 : top2 + s, left2 : left2 + s] = 0
            delta[here] = new
            torch.testing.assert_close(x[row], (clean + 0.25 * delta / delta.norm()).clamp(0, 1), atol=1e-7, rtol=1e-6)
