"""SEAT: its gradient, residual, flooding and attack against formulas and loops by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.seat.seat import linearity_residual, margin, seat_loss, slope

from tests.support import EPS, curved, input_gradient, into_ball, on, parameter_gradient, softmax
from timm_robust.defense import Perturbed
from timm_robust.testing import Bench


@pytest.mark.parametrize("sigma", [1, -1])
def test_seat_gradient_identity(sigma):
    """(1 + 0.6 sigma) grad L(x') - 0.6 sigma grad L(x), sigma the sign of L(x') - L(x) - s; no double backward."""
    bench = Bench.make("seat")
    model = bench.model.double()
    batch = replace(bench.batch, images=bench.batch.images.double())
    adversarial = bench.defense.perturb(batch).images
    slopes = torch.linspace(-0.1, 0.3, 16).double() - sigma  # the predicted change is too small, or too large
    clean_loss = F.cross_entropy(model(batch.images), batch.targets)
    loss = F.cross_entropy(model(adversarial), batch.targets)
    assert torch.sign(loss - clean_loss - slopes.mean()) == sigma
    at_clean, at_adversarial = parameter_gradient(clean_loss, model), parameter_gradient(loss, model)
    expected = (1 + 0.6 * sigma) * at_adversarial - 0.6 * sigma * at_clean
    found = parameter_gradient(bench.defense.loss(batch, Perturbed(adversarial, {"slopes": slopes}))["loss"], model)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, at_adversarial, rtol=1e-2)


def seat_values() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses at both ends and slopes; residuals of either sign."""
    clean, adversarial = np.random.default_rng(0).uniform(0, 3, (2, 8))
    return clean, adversarial, adversarial - clean - np.linspace(-1.0, 1.4, 8)


@pytest.mark.parametrize("per_sample", [False, True])
def test_seat_residual(per_sample):
    """The batch's residual lets signs cancel, each sample's does not."""
    clean, adversarial, slopes = seat_values()
    residuals = adversarial - clean - slopes
    expected = np.abs(residuals).mean() if per_sample else abs(residuals.mean())
    found = linearity_residual(*map(torch.from_numpy, (clean, adversarial, slopes)), per_sample=per_sample)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert np.abs(residuals).mean() > 1.5 * abs(residuals.mean()), "the two differ here"


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_seat_residual_of_a_linear_loss_is_zero(per_sample, bend):
    torch.manual_seed(0)
    weight, images, delta = torch.randn(8, 3, 4, 4).double(), torch.rand(8, 3, 4, 4).double(), torch.randn(8, 3, 4, 4)

    def losses(x):
        return (weight * x).flatten(1).sum(1) + bend * x.square().flatten(1).sum(1)

    gradient = weight + 2 * bend * images
    residual = linearity_residual(
        losses(images), losses(images + delta), slope(delta, gradient), per_sample=per_sample
    ).item()
    quadratic = bend * delta.double().square().flatten(1).sum(1).mean().item()
    assert residual == pytest.approx(quadratic, abs=1e-12)


@pytest.mark.parametrize(("flood", "sign"), [(0.0, 1), (0.5, 1), (2.5, -1)])
def test_seat_flooding(flood, sign):
    """|L - b| + b turns the gradient of the adversarial loss around below b, and leaves the residual's."""
    clean, adversarial, slopes = map(torch.from_numpy, seat_values())
    level = adversarial.mean().item()
    assert 0.5 < level < 2.5
    adversarial.requires_grad_(True)
    settings = {"flood": flood, "per_sample": False}
    loss = seat_loss(clean, adversarial, slopes, weight=0.0, **settings)
    assert loss.item() == pytest.approx(abs(level - flood) + flood, rel=1e-12)
    loss.backward()
    assert torch.allclose(adversarial.grad, torch.full((8,), sign / 8).double())
    residual = abs((adversarial - clean - slopes).mean().item())
    whole = seat_loss(clean, adversarial, slopes, weight=0.6, **settings)
    assert whole.item() == pytest.approx(abs(level - flood) + flood + 0.6 * residual, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_seat_margin(classes):
    random = np.random.default_rng(classes)
    logits, targets = 4 * random.standard_normal((12, classes)), random.integers(0, classes, 12)
    logits[0, targets[0]] = 60.0  # certain and right: no wrong probability is above 0
    p = softmax(logits)
    expected = np.mean([max(np.delete(p[i], t)) - p[i, t] for i, t in enumerate(targets)])
    assert margin(torch.from_numpy(logits), torch.from_numpy(targets)).item() == pytest.approx(expected, rel=1e-12)


def test_seat_slopes_go_with_their_sample():
    """Whatever the order, or the company."""
    defense, batch = on(curved(), "seat", attack_bn="eval", noise_ratio=0.0)
    slopes = defense.perturb(batch).extras["slopes"]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    for rows in (order, torch.arange(5)):
        part = replace(batch, images=batch.images[rows], targets=batch.targets[rows])
        assert torch.allclose(defense.perturb(part).extras["slopes"], slopes[rows], rtol=1e-5)
    assert slopes.std() > 0


@pytest.mark.parametrize("bn", ["train", "eval"])
def test_seat_reuses_the_clean_gradient(bn):
    """The released code computes it again before the loss; in train mode the batch's statistics are the same."""
    bench = Bench.make("seat", method_args={"attack_bn": bn})
    perturbed = bench.defense.perturb(bench.batch)
    bench.model.train(bn == "train")
    gradient = input_gradient(bench.model, bench.batch.images, bench.batch.targets)
    expected = ((perturbed.images - bench.batch.images).double() * gradient.double()).flatten(1).sum(1)
    assert torch.allclose(perturbed.extras["slopes"].double(), expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().min() > 1e-4


@pytest.mark.parametrize("attack_loss", ["margin", "ce"])
def test_seat_attack_by_hand(attack_loss):
    model = curved()
    defense, batch = on(model, "seat", attack_bn="eval", attack_loss=attack_loss)
    torch.manual_seed(3)
    found = defense.perturb(batch).images

    torch.manual_seed(3)
    start = (batch.images + EPS * (2 * torch.empty_like(batch.images).bernoulli_(0.5) - 1)).clamp(0, 1)
    gradient = input_gradient(model, batch.images, batch.targets) / 16  # of the batch mean
    s = ((start - batch.images) * gradient).sum().item()
    start.requires_grad_(True)
    logits, rows = model(start).float(), torch.arange(16)
    p = logits.softmax(1)
    others = (p - 1000 * F.one_hot(batch.targets, 10)).max(1).values
    loss = F.cross_entropy(logits, batch.targets)
    objective = (others - p[rows, batch.targets]).mean() if attack_loss == "margin" else loss
    clean_loss = F.cross_entropy(model(batch.images).float(), batch.targets).item()
    (ascent,) = torch.autograd.grad(objective + 0.6 * (loss - clean_loss - s).abs(), start)
    expected = into_ball(start.detach() + EPS * ascent.sign(), batch.images)
    assert (found - expected).abs().max() < 1e-9
    plain = torch.autograd.grad(F.cross_entropy(model(start).float(), batch.targets), start)[0].sign()
    assert attack_loss == "ce" or not torch.equal(plain, ascent.sign())


def test_seat_fl_differs_by_its_flood_alone():
    seat, flooded = (Bench.make(name).defense.options for name in ("seat", "seat-fl"))
    assert (seat.flood, flooded.flood) == (0.0, 1.0)
    assert replace(flooded, flood=0.0) == replace(flooded, **vars(seat))
