"""Accuracy under attack: seeds, restarts, and PGD against an independent loop."""

from __future__ import annotations

import numpy as np
import torch
import torchattacks
from torch import nn

from tests.support import labelled, network
from timm_robust.evaluation.evaluate import evaluate_model
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.threat import Threat, make_threat

THREAT = make_threat(image_size=8)


def test_attacks_that_draw_from_numpy_follow_the_seed(monkeypatch):
    model = network()
    images, targets = labelled(model, 4)
    drawn = []
    monkeypatch.setattr(torchattacks.Pixle, "forward", lambda self, x, y: drawn.append(np.random.rand()) or x)
    before = np.random.get_state()[1].copy()
    for seed in (3, 3, 4):
        evaluate_model(EvalInputs(model, images, targets, THREAT), ["torchattacks:Pixle"], EvalSettings(seed=seed))
    assert drawn[0] == drawn[1] != drawn[2]
    assert (np.random.get_state()[1] == before).all()


def test_pgd_is_deterministic_and_restarts_only_lower(capsys):
    model = network()
    images, targets = labelled(model)
    threat = Threat("Linf", 2 / 255, "2/255")
    one, again, more = (
        evaluate_model(EvalInputs(model, images, targets, threat), [name], EvalSettings(seed=1)).attacks[name]
        for name in ("pgd-3-1", "pgd-3-1", "pgd-3-4")
    )
    assert one["robust"] == again["robust"]
    assert more["robust_accuracy"] <= one["robust_accuracy"] < 1


def test_pgd_against_an_independent_loop():
    """One step from the clean image with eps/4, by hand, on a linear network where the gradient is known."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    images, targets = torch.rand(40, 3, 8, 8), torch.zeros(40).long()
    weight = linear[1].weight.detach().double()
    direction = (weight[1] - weight[0]).sign().view(3, 8, 8)
    eps = 4 / 255
    worst = (images.double() + eps * direction).clamp(0, 1)
    margin = worst.flatten(1) @ (weight[0] - weight[1]) + (linear[1].bias[0] - linear[1].bias[1]).double()
    threat = Threat("Linf", eps, "4/255")
    result = evaluate_model(EvalInputs(linear, images, targets, threat), ["pgd-20-1", "fgsm"])
    assert result.attacks["pgd-20-1"]["robust"] == (margin > 0).int().tolist()
    assert result.attacks["fgsm"]["robust"] == (margin > 0).int().tolist()
