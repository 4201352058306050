"""ZeroGrad and MultiGrad: their steps against loops by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm_robust_plugins.zerograd.multigrad import MultiGradFGSM
from timm_robust_plugins.zerograd.zerograd import ZeroGradFGSM, without_smallest

from tests.support import EPS, curved, input_gradient, into_ball, on


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (2, 1, 3, 3), (3, 3, 16, 16)])
@pytest.mark.parametrize("quantile", [0.0, 0.35, 0.45, 0.7, 1.0])
def test_zerograd_quantile(shape, quantile):
    gradient = np.random.default_rng(0).standard_normal(shape)
    size = np.abs(gradient).reshape(len(gradient), -1)
    threshold = np.quantile(size, quantile, axis=1).reshape(-1, 1, 1, 1)
    expected = np.where(np.abs(gradient) < threshold, 0, gradient)
    assert np.array_equal(without_smallest(torch.from_numpy(gradient), quantile).numpy(), expected)


def test_zerograd_by_hand():
    model = curved()
    defense, batch = on(model, "zerograd", attack_bn="eval", quantile=0.5)
    torch.manual_seed(3)
    found = defense.perturb(batch).images
    raw = ZeroGradFGSM(defense.run.attacker.view, EPS, 2 * EPS, 0.5)
    torch.manual_seed(3)
    assert torch.equal(raw(batch.images, batch.targets), found), "the guard has nothing to correct"

    torch.manual_seed(3)
    start = (batch.images + torch.empty_like(batch.images).uniform_(-EPS, EPS)).clamp(0, 1)
    gradient = input_gradient(model, start, batch.targets)
    threshold = torch.quantile(gradient.abs().flatten(1), 0.5, dim=1).view(-1, 1, 1, 1)
    small = gradient.abs() < threshold
    expected = into_ball(start + 2 * EPS * torch.where(small, 0, gradient).sign(), batch.images)
    assert torch.allclose(found, expected, atol=1e-9)
    assert small.double().mean() == pytest.approx(0.5, abs=0.01)
    assert torch.allclose(found[small], start[small], atol=1e-9), "these stay at the start"


@pytest.mark.parametrize("starts", [1, 3])
def test_multigrad_by_hand(starts):
    model = curved()
    defense, batch = on(model, "multigrad", attack_bn="eval", starts=starts)
    torch.manual_seed(3)
    found = defense.perturb(batch).images.numpy()
    assert MultiGradFGSM(defense.run.attacker.view, EPS, 2 * EPS, starts)(batch.images, batch.targets).max() <= 1

    torch.manual_seed(3)
    clean, signs = batch.images.numpy(), []
    for _ in range(starts):
        start = (batch.images + torch.empty_like(batch.images).uniform_(-EPS, EPS)).clamp(0, 1)
        signs.append(input_gradient(model, start, batch.targets).sign().numpy())
    signs = np.stack(signs)
    agreed = np.where((signs == signs[0]).all(axis=0), signs[0], 0)
    assert np.allclose(found, np.clip(clean + EPS * agreed, 0, 1), atol=1e-9)
    assert (starts == 1) == bool((agreed != 0).all()), "some starts disagree about some pixels"
