"""FGSM: one full step, in Linf and L2."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support import EPS, curved, input_gradient, on
from timm_robust.attacks.attacker import Attacker
from timm_robust.testing import Bench

# FGSM, FGSM-RS, N-FGSM


def test_fgsm_is_one_full_step_from_the_image():
    model = curved()
    defense, batch = on(model, "fgsm", attack_bn="eval")
    expected = (batch.images + EPS * input_gradient(model, batch.images, batch.targets).sign()).clamp(0, 1)
    assert torch.allclose(defense.perturb(batch).images, expected, atol=1e-9)


# what the methods refuse


@pytest.mark.parametrize("method", ["fgsm", "fgsm-rs"])
def test_fgsm_knows_l2(method):
    bench = Bench.make(method)
    threat = replace(bench.run.threat, norm="L2", eps=0.5)
    bench.defense.run = replace(bench.run, threat=threat, attacker=Attacker(bench.model, threat))
    length = (bench.step()[0].images - bench.batch.images).flatten(1).norm(dim=1)
    assert (length <= 0.5 + 1e-5).all() and (length > 0.3).all()
