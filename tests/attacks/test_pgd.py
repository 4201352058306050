"""torchattacks' gradient attacks as training needs them."""

from __future__ import annotations

import torch
import torchattacks
from torch import nn

from timm_robust.attacks.attacker import Attacker
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
