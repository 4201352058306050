"""ZeroGrad.

Z. Golgooni, M. Saberi, M. Eskandar, M. H. Rohban, ZeroGrad: Mitigating and Explaining Catastrophic Overfitting in FGSM
Adversarial Training, arXiv:2103.15476 (the number is from memory).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.steps import signed_step
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed

from .options import ZeroGradOptions


def without_smallest(gradient: Tensor, quantile: float) -> Tensor:
    """The gradient with each sample's entries below its `quantile` of absolute values set to zero.

    Args:
        gradient: [B, ...].
        quantile: in [0, 1]; 0 keeps everything.
    """
    size = gradient.flatten(1).abs()
    rank = math.ceil(quantile * (size.shape[1] - 1))  # torch.quantile interpolates below it, and takes no large input
    threshold = size.kthvalue(rank + 1, dim=1, keepdim=True).values
    return (gradient.flatten(1) * (size >= threshold)).view_as(gradient)


class ZeroGradFGSM(Attack):
    """FGSM with a uniform start; the pixels with the smallest gradient stay where they are.

    Args:
        model: the network under attack.
        eps, alpha: radius and step, in units of the [0, 1] range.
        quantile: share of pixels left alone.
    """

    def __init__(self, model: torch.nn.Module, eps: float, alpha: float, quantile: float) -> None:
        super().__init__("ZeroGradFGSM", model)
        self.eps, self.alpha, self.quantile = eps, alpha, quantile

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        start = images + torch.empty_like(images).uniform_(-self.eps, self.eps)
        start = start.clamp(0, 1).requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(self.get_logits(start), labels)
        (gradient,) = torch.autograd.grad(loss, start)
        return signed_step(start, without_smallest(gradient, self.quantile), images, alpha=self.alpha, eps=self.eps)


class ZeroGrad(Defense):
    """Cross-entropy on ZeroGrad's images."""

    options: ZeroGradOptions
    norms = ("Linf",)

    def perturb(self, batch: Batch) -> Perturbed:
        options, alpha = self.options, self.options.step_ratio * self.run.threat.eps
        settings = {"bn": options.attack_bn, "alpha": alpha, "quantile": options.quantile}
        return Perturbed(self.attack(batch.images, batch.targets, ZeroGradFGSM, **settings))
