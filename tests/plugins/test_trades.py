"""TRADES: its loss against the definition in float64, and where gradients flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm_robust_plugins.trades.trades import trades_loss
from torch import nn

from tests.support import TARGETS, cross_entropy, fixed_logits, log_softmax


def trades(clean: np.ndarray, adversarial: np.ndarray, beta: float) -> float:
    """The objective of section 4 with KL(p(x) || p(x')), from its definition."""
    p, q = np.exp(log_softmax(clean)), np.exp(log_softmax(adversarial))
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    return cross_entropy(clean, np.eye(10)[TARGETS]) + beta * float(divergence)


def ours(clean: torch.Tensor, adversarial: torch.Tensor, beta: float) -> torch.Tensor:
    loss = nn.functional.cross_entropy(clean, torch.from_numpy(TARGETS))
    return trades_loss(loss, clean, adversarial, beta=beta)


@pytest.mark.parametrize("beta", [0.5, 1.0, 6.0])
def test_trades_loss(beta):
    clean, adversarial = fixed_logits(0), fixed_logits(1)
    expected = trades(clean, adversarial, beta)
    exact = ours(torch.from_numpy(clean), torch.from_numpy(adversarial), beta).item()
    single = ours(torch.from_numpy(clean).float(), torch.from_numpy(adversarial).float(), beta).item()
    assert exact == pytest.approx(expected, rel=1e-12)
    assert single == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(trades(adversarial, clean, beta), rel=1e-2), "the direction of KL matters here"


def test_trades_loss_is_the_clean_loss_without_a_difference_or_a_weight():
    clean, adversarial = torch.from_numpy(fixed_logits(0)), torch.from_numpy(fixed_logits(1))
    clean_loss = nn.functional.cross_entropy(clean, torch.from_numpy(TARGETS)).item()
    assert ours(clean, clean.clone(), 6.0).item() == pytest.approx(clean_loss, rel=1e-12)
    assert ours(clean, adversarial, 0.0).item() == clean_loss


def test_trades_gradient_flows_through_both_predictions():
    """Against differences of the float64 formula: the released code does not detach the clean prediction."""
    clean, adversarial = (torch.from_numpy(fixed_logits(seed)).requires_grad_() for seed in (0, 1))
    ours(clean, adversarial, 6.0).backward()
    for number, tensor in enumerate((clean, adversarial)):
        values = [fixed_logits(0), fixed_logits(1)]
        for place in ((1, 2), (5, 9)):
            ends = []
            for shift in (1e-5, -1e-5):
                values[number][place] += shift
                ends.append(trades(*values, beta=6.0))
                values[number][place] -= shift
            assert tensor.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
