"""MART: its loss, gradients and attack against formulas in float64 NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.mart.mart import GaussianStartPGD, mart_loss

from tests.support import (
    EPS,
    TARGETS,
    assert_gradients_are_those_of,
    cross_entropy,
    curved,
    divergences,
    fixed_logits_one_wrong,
    leaves,
    on,
    perturbed_at_random,
    softmax,
)
from timm_robust.attacks.attacker import Attacker
from timm_robust.testing import Bench

# MART


def mart(clean: np.ndarray, adversarial: np.ndarray, beta: float = 5.0) -> float:
    """BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), with the released code's constants."""
    rows, attacked = np.arange(8), softmax(adversarial)
    second, first = np.argsort(attacked, axis=1)[:, -2:].T
    runner_up = np.where(first == TARGETS, second, first)
    boosted = -np.log(attacked[rows, TARGETS]) - np.log(1.0001 - attacked[rows, runner_up] + 1e-12)
    weights = 1.0000001 - softmax(clean)[rows, TARGETS]
    return float((boosted + beta * weights * divergences(clean, adversarial)).mean())


def our_mart(clean: torch.Tensor, adversarial: torch.Tensor, beta: float = 5.0) -> torch.Tensor:
    targets = torch.from_numpy(TARGETS)
    return mart_loss(F.cross_entropy(adversarial, targets), clean, adversarial, targets, beta=beta)


@pytest.mark.parametrize("beta", [0.0, 5.0, 6.0])
def test_mart_loss(beta):
    clean, adversarial = fixed_logits_one_wrong(0), fixed_logits_one_wrong(1)
    expected = mart(clean, adversarial, beta)
    exact = our_mart(*leaves(clean, adversarial), beta).item()
    single = our_mart(*(t.float() for t in leaves(clean, adversarial)), beta).item()
    assert exact == pytest.approx(expected, rel=1e-9)
    assert single == pytest.approx(expected, rel=1e-5)
    if beta:
        assert expected != pytest.approx(mart(adversarial, clean, beta), rel=1e-2), "the roles matter here"


def test_mart_takes_its_cross_entropy_from_the_caller():
    clean, adversarial, targets = (
        *leaves(fixed_logits_one_wrong(0), fixed_logits_one_wrong(1)),
        torch.from_numpy(TARGETS),
    )
    refined = softmax(fixed_logits_one_wrong(2))
    soft = F.cross_entropy(adversarial, torch.from_numpy(refined))
    found = mart_loss(soft, clean, adversarial, targets, beta=5.0).item()
    change = cross_entropy(fixed_logits_one_wrong(1), refined) - cross_entropy(fixed_logits_one_wrong(1), TARGETS)
    assert found == pytest.approx(mart(fixed_logits_one_wrong(0), fixed_logits_one_wrong(1)) + change, rel=1e-9)


def test_mart_detaches_nothing():
    """Neither the weight 1 - p_y(x) nor the clean prediction in the divergence."""
    assert_gradients_are_those_of(mart, our_mart, fixed_logits_one_wrong(0), fixed_logits_one_wrong(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mart_is_finite_in_half_precision_where_a_wrong_class_is_certain(dtype):
    clean, adversarial = (torch.from_numpy(fixed_logits_one_wrong(seed)).to(dtype).requires_grad_() for seed in (0, 1))
    loss = our_mart(clean, adversarial)
    loss.backward()
    rounded = [t.detach().double().numpy() for t in (clean, adversarial)]
    assert loss.item() == pytest.approx(mart(*rounded), rel=1e-2)
    assert clean.grad.isfinite().all() and adversarial.grad.isfinite().all()


def test_mart_attack_by_hand():
    model = curved()
    defense, batch = on(model, "mart", steps=3, step_ratio=0.5)
    torch.manual_seed(3)
    found = defense.perturb(batch).images
    torch.manual_seed(3)
    expected = (batch.images + 0.001 * torch.randn_like(batch.images)).clamp(0, 1)
    assert (expected - batch.images).abs().max() < 0.006, "not a point of the whole ball"
    for _ in range(3):
        expected = expected.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(expected).float(), batch.targets), expected)
        expected = expected.detach() + EPS / 2 * gradient.sign()
        expected = torch.minimum(torch.maximum(expected, batch.images - EPS), batch.images + EPS).clamp(0, 1)
    assert ((found - expected).abs() > 1e-9).double().mean() < 1e-3


def test_mart_attack_keeps_to_the_ball_without_the_guards_help():
    bench = Bench.make("pgd")
    images = bench.batch.images.mul(1.4).sub(0.2).clamp(0, 1)
    view = Attacker(bench.model, bench.run.threat).view
    found = GaussianStartPGD(view, eps=EPS, alpha=EPS, steps=2)(images, bench.batch.targets)
    assert (found - images).abs().max() <= EPS + 1e-6 and found.min() >= 0 and found.max() <= 1


def test_mart_smooths_only_the_cross_entropy():
    defense, batch = on(curved(), "mart")
    defense.run.recipe = replace(defense.run.recipe, label_smoothing=0.1)
    perturbed = perturbed_at_random(batch)
    smoothed = defense.loss(batch, perturbed)["loss"].item()
    defense.run.recipe = replace(defense.run.recipe, label_smoothing=0.0)
    plain = defense.loss(batch, perturbed)["loss"].item()
    logits = defense.run.model(perturbed.images).detach().numpy()
    labels = np.full((16, 10), 0.1 / 9)
    labels[np.arange(16), batch.targets.numpy()] = 0.9
    change = cross_entropy(logits, labels) - cross_entropy(logits, batch.targets.numpy())
    assert smoothed - plain == pytest.approx(change, rel=1e-6)


# real runs


@pytest.mark.parametrize("options", [{}, {"beta": 6.0, "steps": 2}])
def test_mart_trains(train_small, options):
    rows = train_small("mart", method_args=options, epochs=3).history
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[0]["train_adversarial_loss"] < rows[0]["train_loss"]
