"""The L1 ball inside the pixel range: projection onto it, and PGD with sparse steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timm_robust.attacks.pgd import ObjectivePGD

SHARE = 0.01
"""Share of the pixel values that one step moves; F. Tramer, D. Boneh, NeurIPS 2019, arXiv:1904.13000, section 3."""

EDGE = 1e-6
"""Distance from 0 or 1 below which a pixel counts as being there: rounding."""

HALVINGS = 60
"""Bisections of the interval that holds the threshold: more than float32 can tell apart."""


def project_l1(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest point in the intersection of the L1 ball and [0, 1].

    Projecting onto one after the other ends elsewhere and weakens attacks: F. Croce, M. Hein, Mind the box: l1-APGD for
    sparse adversarial attacks on image classifiers, ICML 2021, arXiv:2103.01208, section 3. The solution is
    sign(d) min(max(|d| - t, 0), room), with the smallest threshold t >= 0 that fits the ball, found by bisection.

    Args:
        adversarial, images: float [N, C, H, W]; `images` in [0, 1].
        eps: radius.

    Returns:
        float [N, C, H, W].
    """
    delta = torch.where(adversarial.isfinite(), adversarial - images, 0).flatten(1)
    flat = images.flatten(1)
    size, room = delta.abs(), torch.where(delta > 0, 1 - flat, flat)
    low = torch.zeros(len(delta), 1, device=delta.device, dtype=delta.dtype)
    high = size.max(dim=1, keepdim=True).values
    outside = torch.minimum(size, room).sum(dim=1, keepdim=True) > eps
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = torch.minimum((size - middle).clamp(min=0), room).sum(dim=1, keepdim=True) <= eps
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    threshold = torch.where(outside, high, torch.zeros_like(high))
    moved = delta.sign() * torch.minimum((size - threshold).clamp(min=0), room)
    return (flat + moved).clamp(0, 1).view_as(images)


class PGDL1(ObjectivePGD):
    """PGD under L1: each step spreads `alpha` evenly over the pixel values of largest gradient that can still move.

    F. Tramer, D. Boneh, Adversarial training and robustness for multiple perturbations, NeurIPS 2019, arXiv:1904.13000,
    section 3 (SLIDE), with the exact projection of `project_l1`.

    Args:
        model: network under attack.
        eps: radius.
        alpha: L1 norm of a step.
        steps: number of steps.
        random_start: start at a random point of the ball; otherwise at the image.
    """

    def __init__(
        self, model: nn.Module, eps: float = 12.0, alpha: float = 3.0, steps: int = 10, random_start: bool = True
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)

    def start(self, images: Tensor) -> Tensor:
        noise = torch.distributions.Laplace(0.0, 1.0).sample(images.shape).to(images)
        length = noise.flatten(1).abs().sum(dim=1).view(-1, 1, 1, 1)
        return project_l1(images + self.eps * noise / length, images, self.eps)

    def objective(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def step(self, adversarial: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        adversarial = adversarial.detach()
        flat, at = gradient.flatten(1), adversarial.flatten(1)
        stuck = ((flat > 0) & (at > 1 - EDGE)) | ((flat < 0) & (at < EDGE))
        flat = flat.masked_fill(stuck, 0)
        count = max(1, round(SHARE * flat.shape[1]))
        places = flat.abs().topk(count, dim=1).indices
        signs = torch.zeros_like(flat).scatter(1, places, flat.gather(1, places).sign())
        return project_l1(adversarial + (self.alpha / count * signs).view_as(images), images, self.eps)
