"""SAT: its attack's start, coin, steps and ball."""

from __future__ import annotations

import pytest
import torch
from timm_robust_plugins.sat.sat import CoinStartPGD
from torch import nn

from tests.support import EPS, inside, linear_and_sign
from timm_robust.attacks.attacker import Attacker
from timm_robust.threat import make_threat

THREAT = make_threat(image_size=8)


LABELS = torch.zeros(6, dtype=torch.long)


@pytest.mark.parametrize(
    ("alpha", "steps"), [(EPS, 1), (0.1 * EPS, 1), (1.5 * EPS, 1), (0.1 * EPS, 4), (0.5 * EPS, 2), (EPS, 3)]
)
def test_sat_from_the_clean_image_is_fgsm(images, alpha, steps):
    """On a linear network every step goes the same way, so steps x max(alpha, eps / steps), cut at eps, is FGSM."""
    model, sign = linear_and_sign()
    found = Attacker(model, THREAT)(images, LABELS, CoinStartPGD, alpha=alpha, steps=steps, clean_start=1.0)
    assert torch.allclose(found, (images + EPS * sign).clamp(0, 1), atol=1e-6)


def flat() -> nn.Module:
    """A network of zero gradient: the attack ends where it starts."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    nn.init.zeros_(model[1].weight)
    return model


def test_sat_starts_in_the_ball():
    images = torch.full((6, 3, 8, 8), 0.5)
    attacker = Attacker(flat(), THREAT)
    torch.manual_seed(0)
    found = attacker(images, LABELS, CoinStartPGD, alpha=EPS, steps=1, clean_start=0.0)
    length = (found - images).abs()
    assert inside(found, images) and length.max() > 0.99 * EPS
    assert length.mean().item() == pytest.approx(EPS / 2, rel=0.05), "uniform"


def test_sat_tosses_one_coin_per_batch():
    images = torch.full((2, 3, 8, 8), 0.5)
    attacker = Attacker(flat(), THREAT)
    torch.manual_seed(0)
    settings = {"alpha": EPS, "steps": 1, "clean_start": 0.2}
    moved = [(attacker(images, LABELS[:2], CoinStartPGD, **settings) != images).float().mean() for _ in range(400)]
    assert all(m == 0 or m > 0.9 for m in moved), "the whole batch or none of it"
    assert sum(m == 0 for m in moved) / 400 == pytest.approx(0.2, abs=0.06)  # three standard deviations


@pytest.mark.parametrize("clean_start", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_sat_never_leaves_the_ball(small_model, images, clean_start, steps):
    raw = CoinStartPGD(Attacker(small_model.eval(), THREAT).view, EPS, 2 * EPS, steps, clean_start)
    torch.manual_seed(0)
    assert inside(raw(images, torch.arange(6)).detach(), images)  # without the guard's help
