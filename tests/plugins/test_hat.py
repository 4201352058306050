"""HAT: its loss against formulas in float64 NumPy, helper images and labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.hat.hat import hat_loss
from torch import nn

from tests.support import (
    TARGETS,
    Noting,
    assert_gradients_are_those_of,
    cross_entropy,
    curved,
    divergences,
    fixed_logits_one_wrong,
    leaves,
    on,
    perturbed_at_random,
)

HELPER_LABELS = np.array([3, 7, 4, 1, 0, 9, 2, 8])


def hat(clean: np.ndarray, adversarial: np.ndarray, helper: np.ndarray, beta: float = 2.5, gamma: float = 0.5) -> float:
    robust = cross_entropy(clean, TARGETS) + beta * divergences(clean, adversarial).mean()
    return float(robust + gamma * cross_entropy(helper, HELPER_LABELS))


def our_hat(clean, adversarial, helper, beta: float = 2.5, gamma: float = 0.5) -> torch.Tensor:
    loss, labels = F.cross_entropy(clean, torch.from_numpy(TARGETS)), torch.from_numpy(HELPER_LABELS)
    return hat_loss(loss, clean, adversarial, helper, labels, beta=beta, gamma=gamma)


@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 0.5), (3.5, 0.0), (0.0, 1.0)])
def test_hat_loss(beta, gamma):
    logits = [fixed_logits_one_wrong(seed) for seed in (0, 1, 2)]
    assert our_hat(*leaves(*logits), beta, gamma).item() == pytest.approx(hat(*logits, beta, gamma), rel=1e-12)
    assert_gradients_are_those_of(hat, our_hat, *logits)


@pytest.mark.parametrize("h", [2.0, 3.5])
def test_hat_helper_images_and_labels(h):
    """Helper images leave the pixel range; their labels are what the helper says of the adversarial images."""
    model = Noting(curved())
    defense, batch = on(model, "hat", h=h)
    helper = Noting(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).double().eval().requires_grad_(False))
    defense.run.teachers = {"helper": helper}
    batch = replace(batch, images=batch.images.mul(1.4).sub(0.2).clamp(0, 1))
    perturbed = perturbed_at_random(batch)
    output = defense.loss(batch, perturbed)

    clean, adversarial = batch.images, perturbed.images
    beyond = clean + h * (adversarial - clean)
    assert beyond.min() < 0 and beyond.max() > 1
    for images in (clean, adversarial, beyond):
        assert sum(torch.equal(given, images) for given, *_ in model.seen) == 1, "a forward of its own"
    ((shown, training, with_gradient),) = helper.seen
    assert torch.equal(shown, adversarial) and not training and not with_gradient

    labels = helper.network(adversarial).argmax(1).numpy()
    on_clean, on_adversarial, on_beyond = (model(x).detach().numpy() for x in (clean, adversarial, beyond))
    expected = cross_entropy(on_clean, batch.targets.numpy()) + 2.5 * divergences(on_clean, on_adversarial).mean()
    expected += 0.5 * cross_entropy(on_beyond, labels)
    assert output["loss"].item() == pytest.approx(expected, rel=1e-9)
    assert output["helper_fooled"].item() == pytest.approx((labels != batch.targets.numpy()).mean())
