"""N-FGSM: its step against a loop by hand."""

from __future__ import annotations

import pytest
import torch

from tests.support import EPS, curved, input_gradient, on


@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0, 3.0])
def test_n_fgsm_by_hand(noise):
    model = curved()
    defense, batch = on(model, "n-fgsm", attack_bn="eval", noise_ratio=noise)
    torch.manual_seed(3)
    found = defense.perturb(batch).images
    torch.manual_seed(3)
    noisy = (batch.images + torch.empty_like(batch.images).uniform_(-noise * EPS, noise * EPS)).clamp(0, 1)
    expected = (noisy + EPS * input_gradient(model, noisy, batch.targets).sign()).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-9)
    far = (found - batch.images).abs().max().item() / EPS
    assert far <= 1 + noise + 1e-6 and (noise == 0 or far > 1.2)
    assert found.min() >= 0 and found.max() <= 1
