"""PGD in the L1 ball, against the projection worked out by bisection and a linear network."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from tests.support import lengths
from timm_robust.attacks.attacker import Attacker
from timm_robust.attacks.l1 import PGDL1, project_l1
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 3 / 255, "3/255"), Threat("L2", 0.15, "0.15"), Threat("L1", 1.5, "1.5")


def by_hand_l1(point: np.ndarray, clean: np.ndarray, eps: float) -> np.ndarray:
    """The projection by the sorted breakpoints of its piecewise linear equation, in float64."""
    delta = point - clean
    room = np.where(delta > 0, 1 - clean, clean)
    size = np.abs(delta)

    def total(t: float) -> float:
        return np.minimum(np.maximum(size - t, 0), room).sum()

    if total(0) <= eps:
        return clean + np.sign(delta) * np.minimum(size, room)
    breaks = np.unique(np.concatenate([[0], size, np.maximum(size - room, 0)]))
    after = next(i for i, t in enumerate(breaks) if total(t) <= eps)
    low, high = breaks[after - 1], breaks[after]
    share = (total(low) - eps) / (total(low) - total(high))
    t = low + share * (high - low)
    return clean + np.sign(delta) * np.minimum(np.maximum(size - t, 0), room)


def test_projection_onto_the_l1_ball_in_the_box():
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 4, 4, generator=draw).double()
    points = images + torch.randn(images.shape, generator=draw).double() * torch.logspace(-3, 1, 40).view(-1, 1, 1, 1)
    ours = project_l1(points, images, 2.0)
    for x, point, clean in zip(ours, points, images, strict=True):
        expected = by_hand_l1(point.flatten().numpy(), clean.flatten().numpy(), 2.0)
        assert np.abs(x.flatten().numpy() - expected).max() < 1e-9
    assert lengths(ours - images, "L1").max() <= 2 + 1e-9
    assert torch.equal(project_l1(images, images, 2.0), images)
    lost = points.clone()
    lost[0, 0, 0, 0] = math.nan
    assert project_l1(lost, images, 2.0).isfinite().all()


def test_pgd_l1_on_a_linear_network():
    """The most that L1 can do to a linear margin is to fill the pixels of largest weight, each up to the box."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    images, targets = torch.rand(20, 3, 8, 8), torch.zeros(20).long()
    weight = (linear[1].weight[1] - linear[1].weight[0]).detach().double()
    room = torch.where(weight > 0, 1 - images.flatten(1).double(), images.flatten(1).double())
    order = weight.abs().argsort(descending=True)
    filled = room[:, order].cumsum(1)
    spent = (room[:, order] - (filled - 3.0).clamp(min=0)).clamp(min=0)
    best = (spent * weight.abs()[order]).sum(1)
    view = Attacker(linear, L1).view
    adversarial = PGDL1(view, eps=3.0, alpha=0.75, steps=60)(images, targets)
    gained = (adversarial - images).flatten(1).double() @ weight
    assert (gained <= best + 1e-4).all() and (gained > 0.9 * best).all() and gained.sum() > 0.98 * best.sum()
