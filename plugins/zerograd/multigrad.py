"""MultiGrad, from the same paper as ZeroGrad (arXiv:2103.15476)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.steps import uniform_start
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed

from .options import MultiGradOptions


class MultiGradFGSM(Attack):
    """A step from the clean image along the gradient signs that all random starts agree on.

    Args:
        model: network under attack.
        eps, alpha: radius and step size, in units of the [0, 1] range.
        starts: number of random starts, uniform in the ball.
    """

    def __init__(self, model: torch.nn.Module, eps: float, alpha: float, starts: int) -> None:
        super().__init__("MultiGradFGSM", model)
        self.eps, self.alpha, self.starts = eps, alpha, starts

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        votes = torch.zeros_like(images)
        for _ in range(self.starts):
            start = uniform_start(images, self.eps).requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(self.get_logits(start), labels)
            votes += torch.autograd.grad(loss, start)[0].sign()
        agreed = votes.sign() * (votes.abs() == self.starts)
        return (images + (self.alpha * agreed).clamp(-self.eps, self.eps)).clamp(0, 1)


class MultiGrad(Defense):
    """Cross-entropy on MultiGrad's images."""

    options: MultiGradOptions
    norms = ("Linf",)

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        settings = {"alpha": self.times_eps(options.step_ratio), "starts": options.starts}
        return Perturbed(self.attack(batch.images, batch.targets, MultiGradFGSM, bn=options.attack_bn, **settings))
