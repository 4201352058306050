"""N-FGSM.

P. de Jorge, A. Bibi, R. Volpi, A. Sanyal, P. H. S. Torr, G. Rogez, P. K. Dokania, Make Some Noise: Reliable and
Efficient Single-Step Adversarial Training, NeurIPS 2022, arXiv:2202.01181.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.steps import uniform_start
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed

from .options import NFgsmOptions


class NFGSM(Attack):
    """Noise that becomes part of the perturbation, then one signed step; clipped to [0, 1] but not to the ball.

    Args:
        model: network under attack.
        alpha: step size, in units of the [0, 1] range.
        noise: half width of the uniform noise, same unit. The result lies up to `noise + alpha` from the image.
    """

    def __init__(self, model: torch.nn.Module, alpha: float, noise: float) -> None:
        super().__init__("NFGSM", model)
        self.alpha, self.noise = alpha, noise

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        noisy = uniform_start(images, self.noise).requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(self.get_logits(noisy), labels)
        (gradient,) = torch.autograd.grad(loss, noisy)
        return (noisy.detach() + self.alpha * gradient.sign()).clamp(0, 1)


class NFGSMTraining(Defense):
    """Cross-entropy on N-FGSM's images, which lie up to (noise_ratio + step_ratio) eps away."""

    options: NFgsmOptions
    norms = ("Linf",)

    def __init__(self, options: NFgsmOptions) -> None:
        super().__init__(options)
        self.eps_multiplier = options.noise_ratio + options.step_ratio

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        settings = {"alpha": self.times_eps(options.step_ratio), "noise": self.times_eps(options.noise_ratio)}
        return Perturbed(self.attack(batch.images, batch.targets, NFGSM, bn=options.attack_bn, **settings))
