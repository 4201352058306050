"""ZeroGrad.

Z. Golgooni, M. Saberi, M. Eskandar, M. H. Rohban, ZeroGrad: Mitigating and Explaining Catastrophic Overfitting in FGSM
Adversarial Training, arXiv:2103.15476 (the number is from memory).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from timm_robust.attacks.pgd import ObjectivePGD
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed

from .options import ZeroGradOptions


def without_smallest(gradient: Tensor, quantile: float) -> Tensor:
    """The gradient with each sample's entries below the `quantile` of its absolute values set to zero.

    Args:
        gradient: [B, ...].
        quantile: quantile in [0, 1]; 0 keeps everything.
    """
    size = gradient.flatten(1).abs()
    rank = math.ceil(quantile * (size.shape[1] - 1))  # torch.quantile interpolates, and rejects large inputs
    threshold = size.kthvalue(rank + 1, dim=1, keepdim=True).values
    return (gradient.flatten(1) * (size >= threshold)).view_as(gradient)


class ZeroGradFGSM(ObjectivePGD):
    """FGSM with a uniform start that leaves the pixels with the smallest gradients unchanged.

    Args:
        model: network under attack.
        eps, alpha: radius and step size, in units of the [0, 1] range.
        quantile: fraction of the pixels that are left unchanged.
    """

    def __init__(self, model: torch.nn.Module, eps: float, alpha: float, quantile: float) -> None:
        super().__init__(model, eps, alpha, steps=1)
        self.quantile = quantile

    def step(self, adversarial: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        return super().step(adversarial, without_smallest(gradient, self.quantile), images)


class ZeroGrad(Defense):
    """Cross-entropy on ZeroGrad's images."""

    options: ZeroGradOptions
    norms = ("Linf",)

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        settings = {"alpha": self.times_eps(options.step_ratio), "quantile": options.quantile}
        return Perturbed(self.attack(batch.images, batch.targets, ZeroGradFGSM, bn=options.attack_bn, **settings))
