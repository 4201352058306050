"""FAB's projections against the reference and a linear program."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.fab_projections import projection_l2, projection_linf
from scipy.optimize import linprog

from timm_robust.evaluation.fast.projections import project


def hyperplanes(n, size, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, size, generator=generator, dtype=torch.float64)
    points[points < 0.1], points[points > 0.9] = 0.0, 1.0
    weights = torch.randn(n, size, generator=generator, dtype=torch.float64)
    weights[torch.rand(n, size, generator=generator) < 0.2] = 0
    inside = torch.rand(n, size, generator=generator, dtype=torch.float64)
    return points, weights, (weights * inside).sum(1)


@pytest.mark.parametrize("norm, reference", [("Linf", projection_linf), ("L2", projection_l2)])
def test_projections_are_the_references(norm, reference, double):
    points, weights, offset = hyperplanes(60, 48, 0)
    as_image = (60, 3, 4, 4)
    residual = (weights * points).sum(1) - offset
    d, length = project(points.view(as_image), weights.view(as_image), residual, norm)
    flat = d.flatten(1)
    torch.testing.assert_close((weights * (points + flat)).sum(1), offset)
    assert (points + flat).min() > -1e-12 and (points + flat).max() < 1 + 1e-12
    expected = reference(points, weights, offset)
    ours, theirs = (x.abs().amax(1) if norm == "Linf" else x.norm(dim=1) for x in (flat, expected))
    torch.testing.assert_close(length.flatten(), ours)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(flat, expected)


def test_linf_projection_solves_the_linear_program():
    points, weights, offset = hyperplanes(8, 12, 1)
    residual = (weights * points).sum(1) - offset
    _, length = project(points.view(8, 3, 2, 2), weights.view(8, 3, 2, 2), residual, "Linf")
    for t, w, b, found in zip(points, weights, offset, length.flatten(), strict=True):
        n = len(t)
        above = torch.cat([torch.eye(n), -torch.ones(n, 1)], 1)  # d - s <= 0
        below = torch.cat([-torch.eye(n), -torch.ones(n, 1)], 1)
        solved = linprog(
            [0] * n + [1],
            A_ub=torch.cat([above, below]).numpy(),
            b_ub=[0] * 2 * n,
            A_eq=[[*w.tolist(), 0]],
            b_eq=[(b - (w * t).sum()).item()],
            bounds=[*zip((-t).tolist(), (1 - t).tolist(), strict=True), (0, None)],
        )
        assert solved.fun == pytest.approx(found.item(), abs=1e-9)


def test_a_hyperplane_outside_the_box_is_neared_to_the_corner():
    points, weights = torch.full((1, 1, 1, 2), 0.25), torch.tensor([[[[1.0, -2.0]]]])
    d, length = project(points, weights, torch.tensor([-50.0]), "Linf")
    assert torch.equal(points + d, torch.tensor([[[[1.0, 0.0]]]])) and length.item() == 0.75
    assert project(points, torch.zeros_like(weights), torch.tensor([1.0]), "L2")[0].abs().max() == 0
