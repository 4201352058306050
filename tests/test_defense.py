"""Label smoothing of the contract's cross-entropy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support import TARGETS, cross_entropy, fixed_logits, log_softmax
from timm_robust.defense import Defense
from timm_robust.recipes.presets import make_recipe


def smoothed_defense(smoothing: float) -> Defense:
    defense = Defense(options=None)
    defense.run = SimpleNamespace(recipe=make_recipe("default", {}, {"label_smoothing": smoothing}))
    return defense


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_spreads_its_mass_over_the_other_classes(smoothing):
    logits = fixed_logits(2)
    labels = np.full((8, 10), smoothing / 9)
    labels[np.arange(8), TARGETS] = 1 - smoothing
    loss = smoothed_defense(smoothing).cross_entropy(torch.from_numpy(logits), torch.from_numpy(TARGETS))
    assert loss.item() == pytest.approx(cross_entropy(logits, labels), rel=1e-12)


def test_soft_labels_are_not_smoothed_again():
    logits, labels = fixed_logits(2), np.exp(log_softmax(fixed_logits(3)))
    loss = smoothed_defense(0.1).cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(cross_entropy(logits, labels), rel=1e-12)


def test_label_smoothing_is_that_of_the_field():
    """0.2 for ten classes is what PyTorch calls 0.2222."""
    defense = Defense(options=None)
    defense.run = SimpleNamespace(recipe=make_recipe("default", {}, {"label_smoothing": 0.2}))
    logits, targets = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    labels = torch.full((6, 10), 0.2 / 9, dtype=torch.float64).scatter_(1, targets[:, None], 0.8)
    found = defense.cross_entropy(logits, targets)
    assert torch.allclose(found, -(labels * logits.log_softmax(1)).sum(1).mean())
    assert torch.allclose(found, F.cross_entropy(logits, targets, label_smoothing=2 / 9))
