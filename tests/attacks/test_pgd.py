"""torchattacks' gradient attacks as training needs them."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.attacks.l1 import PGDL1
from timm_robust.attacks.pgd import GaussianStartPGD, ObjectivePGD
from timm_robust.errors import UserError
from timm_robust.threat import make_threat

LINF = make_threat(image_size=8)


def test_apgd_changes_wrong_and_robust_samples_too(small_model, images):
    """torchattacks' APGD returns the clean image for both: useless for training."""
    small_model.eval()
    wrong = (small_model(images).argmax(1) + 1) % 10
    assert torch.equal(torchattacks.APGD(small_model, steps=2)(images, wrong), images)
    torch.manual_seed(0)
    changed = Attacker(small_model, LINF)(images, wrong, "apgd", steps=2)
    assert ((changed - images).abs().flatten(1).amax(1) > 0).all()


def test_the_start_of_ffgsm_is_one_uniform_draw(small_model, images, targets):
    """One signed step from it, in float64 by hand; torchattacks draws a normal tensor first, for nothing."""
    small_model.eval()
    torch.manual_seed(3)
    adversarial = Attacker(small_model, LINF)(images, targets, "ffgsm", alpha=1.25 * LINF.eps)
    torch.manual_seed(3)
    start = (images + torch.empty_like(images).uniform_(-LINF.eps, LINF.eps)).clamp(0, 1).requires_grad_(True)
    loss = nn.functional.cross_entropy(small_model(start), targets)
    sign = torch.autograd.grad(loss, start)[0].sign().double()
    moved = start.detach().double() + 1.25 * LINF.eps * sign
    expected = torch.minimum(torch.maximum(moved, images.double() - LINF.eps), images.double() + LINF.eps).clamp(0, 1)
    torch.testing.assert_close(adversarial.double(), expected, atol=1e-6, rtol=0)


class Towards(ObjectivePGD):
    """Descends the cross-entropy with other labels."""

    def objective(self, logits, labels, others):
        return -nn.functional.cross_entropy(logits, others)


@pytest.mark.parametrize("gaussian", [False, True], ids=["uniform", "gaussian"])
@pytest.mark.parametrize("random_start", [False, True])
def test_objective_pgd_is_a_loop_by_hand(small_model, images, targets, gaussian, random_start):
    small_model.eval()
    eps, alpha = LINF.eps, LINF.eps / 4
    torch.manual_seed(5)
    cls = GaussianStartPGD if gaussian else ObjectivePGD
    found = cls(small_model, eps, alpha, 3, random_start)(images, targets)
    torch.manual_seed(5)
    point = images
    if random_start:
        noise = 0.001 * torch.randn_like(images) if gaussian else torch.empty_like(images).uniform_(-eps, eps)
        point = (images + noise).clamp(0, 1)
    for _ in range(3):
        point = point.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(small_model(point), targets), point)
        point = (images + (point.detach() + alpha * gradient.sign() - images).clamp(-eps, eps)).clamp(0, 1)
    assert torch.equal(found, point)
    assert not found.requires_grad and not images.requires_grad


def test_context_reaches_the_objective(small_model, images, targets):
    """And the settings of an attack that inherits its constructor are known by name."""
    small_model.eval()
    others = (targets + 1) % 10
    found = Attacker(small_model, LINF)(images, targets, Towards, others, steps=3, alpha=LINF.eps / 2)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert loss(small_model(found), others) < loss(small_model(images), others)
    with pytest.raises(UserError, match="unknown setting of attack Towards 'step'.*did you mean steps"):
        Attacker(small_model, LINF).build(Towards, step=3)


@pytest.mark.parametrize("attack", [ObjectivePGD, GaussianStartPGD, PGDL1])
def test_layout_is_kept(small_model, images, targets, attack):
    images = images.to(memory_format=torch.channels_last)
    small_model.eval()
    found = attack(small_model, steps=1)(images, targets)
    assert found.is_contiguous(memory_format=torch.channels_last) or attack is PGDL1


class Scaled(ObjectivePGD):
    def __init__(self, model, gradient_scale=1.0):
        super().__init__(model)
        self.gradient_scale = gradient_scale


def test_attacks_learn_the_gradient_scale(small_model):
    attacker = Attacker(small_model, LINF, gradient_scale=1024.0)
    assert attacker.build(Scaled).gradient_scale == 1024.0
    assert attacker.view_of(nn.Identity()).gradient_scale == 1024.0
