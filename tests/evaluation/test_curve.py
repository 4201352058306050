"""Accuracy over the radius, on a linear network where it is known."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from torch import nn

from tests.support import labelled, network
from timm_robust.evaluation.curve import accuracy_curve, grid
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.evaluation.statistics import wilson
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 4 / 255, "4/255"), Threat("L2", 0.3, "0.3"), Threat("L1", 2.0, "2")


def test_a_curve_on_a_linear_network_is_known():
    """Two classes, linear: the margin falls by eps times the L1 norm of the weights, inside the box."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    images = 0.25 + 0.5 * torch.rand(60, 3, 8, 8)
    with torch.no_grad():
        targets = linear(images).argmax(1)
        margins = (linear(images)[:, 0] - linear(images)[:, 1]).double().abs()
    weight = (linear[1].weight[1] - linear[1].weight[0]).detach().double()
    radii = [0, 0.01, 0.02, 0.03, 0.2]
    told = []
    found = accuracy_curve(
        EvalInputs(linear, images, targets, LINF),
        radii[::-1],
        "pgd-20-1",
        EvalSettings(batch_size=7),
        progress=lambda *a: told.append(a),
    )
    assert found.eps == tuple(radii)
    for eps, row in zip(radii, found.still_correct, strict=True):
        assert list(row) == (margins > eps * weight.abs().sum()).int().tolist()
    assert found.accuracies[0] == 1 and 0 < found.accuracies[2] < 1 and found.accuracies[-1] == 0
    assert told[-1][1:3] == (60, 60)
    assert found.intervals()[2] == wilson(sum(found.still_correct[2]), 60)


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_curves_never_rise(threat):
    model = network()
    images, targets = labelled(model, 30)
    found = accuracy_curve(EvalInputs(model, images, targets, threat), grid(threat), "pgd-3-1")
    assert list(found.accuracies) == sorted(found.accuracies, reverse=True)
    for smaller, larger in zip(found.still_correct, found.still_correct[1:], strict=False):
        assert all(a >= b for a, b in zip(smaller, larger, strict=True))
    assert found.accuracies[0] == pytest.approx(29 / 30) and found.accuracies[-1] < 0.5
    assert json.loads(json.dumps(found.to_dict()))["robust_accuracy"] == list(found.accuracies)


def test_the_default_radii():
    assert grid(Threat("Linf", 8 / 255, "8/255")) == [
        "0", "2/255", "4/255", "6/255", "8/255", "12/255", "16/255", "24/255", "32/255",
    ]  # fmt: skip
    assert grid(Threat("L2", 0.5, "0.5"))[-2:] == ["1.5", "2"]
    assert grid(Threat("Linf", 0.5, "0.5"), (0, 1, Fraction(2), 3)) == ["0", "0.5", "1"]


def test_autoattack_on_a_curve():
    model = network(3)
    images, targets = labelled(model, 6)
    found = accuracy_curve(EvalInputs(model, images, targets, LINF), ["0", "40/255"], "autoattack-rand")
    assert found.attack == "autoattack-rand"
    assert found.accuracies[0] == pytest.approx(5 / 6) and found.accuracies[-1] < 5 / 6
