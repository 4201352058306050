"""FGSM-RS: the step of the paper's algorithm on a linear network, and the ball."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.support import EPS, curved, inside, linear_and_sign, on
from timm_robust.attacks.attacker import Attacker
from timm_robust.testing import Bench
from timm_robust.threat import make_threat

THREAT = make_threat(image_size=8)


LABELS = torch.zeros(6, dtype=torch.long)


def test_fgsm_rs(images):
    """Wong et al., algorithm 3: uniform start, one step of 1.25 eps, back into the ball and into [0, 1]."""
    model, sign = linear_and_sign()
    bench = Bench.make("fgsm-rs")
    bench.defense.run = SimpleNamespace(threat=THREAT, attacker=Attacker(model, THREAT))
    torch.manual_seed(7)
    found = bench.defense.perturb(SimpleNamespace(images=images, targets=LABELS)).images

    torch.manual_seed(7)
    start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    delta = (start + 1.25 * EPS * sign - images).clamp(-EPS, EPS)
    expected = (images + delta).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-7)
    assert inside(found, images)
    middle = (images > EPS) & (images < 1 - EPS)
    short = (found - images).abs()[middle] < EPS - 1e-6
    # from three eighths of the starts, those below -eps / 4, the step does not reach the edge
    assert short.float().mean().item() == pytest.approx(3 / 8, abs=0.05)


def test_fgsm_rs_stays_in_the_ball():
    defense, batch = on(curved(), "fgsm-rs", attack_bn="eval", step_ratio=3.0)
    far = (defense.perturb(batch).images - batch.images).abs().max().item()
    assert 0.999 * EPS < far <= EPS + 1e-6
