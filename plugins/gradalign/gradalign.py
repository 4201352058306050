"""GradAlign.

M. Andriushchenko, N. Flammarion, Understanding and Improving Fast Adversarial Training, NeurIPS 2020, arXiv:2007.02617.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchattacks.attack import Attack

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput

from .options import GradAlignOptions


def alignment_penalty(gradient: Tensor, other: Tensor) -> Tensor:
    """1 minus the mean cosine similarity of two gradients (paper, section 4); 0 if no sample has two gradients.

    Args:
        gradient, other: [B, ...]; samples with a zero gradient are left out of the mean.
    """
    gradient, other = gradient.flatten(1).float(), other.flatten(1).float()
    kept = ((gradient.norm(dim=1) > 0) & (other.norm(dim=1) > 0)).float()
    # cosine_similarity is finite at zero, so leaving samples out needs no synchronisation with the device
    cosine = F.cosine_similarity(gradient, other, dim=1, eps=1e-20) * kept
    return (1 - cosine.sum() / kept.sum().clamp(min=1)) * (kept.sum() > 0)


def default_weight(eps: float) -> float:
    """The authors' weight for CIFAR-10: 0.2 at 8/255, 2.0 at 16/255, geometric in eps."""
    return 0.2 * 10 ** ((255 * eps - 8) / 8)


class KeepingFGSM(Attack):
    """FGSM that stores the gradient at the clean images as `gradient`, since the penalty needs it too."""

    def __init__(self, model: torch.nn.Module, eps: float) -> None:
        super().__init__("KeepingFGSM", model)
        self.eps = eps
        self.gradient: Tensor | None = None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        points = images.clone().requires_grad_(True)
        loss = F.cross_entropy(self.get_logits(points), labels)
        (self.gradient,) = torch.autograd.grad(loss, points)
        return (images + self.eps * self.gradient.sign()).clamp(0, 1)


class GradAlign(Defense):
    """Cross-entropy on FGSM's images plus the penalty, which differentiates the gradient at noisy images."""

    options: GradAlignOptions
    norms = ("Linf",)
    differentiates_twice = True

    def perturb(self, batch: Batch) -> Perturbed:
        attack = self.run.attacker.build(KeepingFGSM, eps=self.times_eps(self.options.step_ratio))
        images = self.attack(batch.images, batch.targets, attack, bn=self.options.attack_bn)
        eps = self.run.threat.eps
        noise = torch.empty_like(batch.images).uniform_(-eps, eps)
        return Perturbed(images, {"gradient": attack.gradient, "noisy": batch.images + noise})

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        weight = default_weight(self.run.threat.eps) if self.options.weight is None else self.options.weight
        noisy = perturbed.extras["noisy"].detach().requires_grad_(True)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            # a sum, since in float16 the gradient of a batch mean underflows; the cosine ignores the factor
            noisy_loss = F.cross_entropy(self.run.model(noisy).float(), batch.targets, reduction="sum")
            (gradient,) = torch.autograd.grad(noisy_loss, noisy, create_graph=True)
        logits = self.run.model(perturbed.images)
        penalty = alignment_penalty(perturbed.extras["gradient"], gradient)
        loss = self.cross_entropy(logits, batch.targets) + weight * penalty
        return {"loss": loss, "logits": logits, "alignment_penalty": penalty.detach()}
