"""Smooth adversarial training.

C. Xie, M. Tan, B. Gong, A. Yuille, Q. V. Le, Smooth Adversarial Training, arXiv:2006.14536. The method is single-step
adversarial training of a network with smooth activations; the host swaps them (`--activation`), because a checkpoint
must rebuild without any plugin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from timm_robust.attacks.pgd import ObjectivePGD
from timm_robust.attacks.steps import clip_linf
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput
from timm_robust.models.activations import smooth_backward

from .options import SatOptions


class CoinStartPGD(ObjectivePGD):
    """PGD whose start is uniform noise, or the clean image with probability `clean_start`, one coin per batch.

    As in the released code: the start is not clipped to the pixel range before the first gradient, and each step is
    clipped to the ball and to [0, 1] at once. `alpha` below eps / steps is raised to it.

    Args:
        model: network under attack.
        eps, alpha: radius and step size, in units of the [0, 1] range.
        steps: number of steps.
        clean_start: probability of starting at the clean image.
    """

    def __init__(self, model: torch.nn.Module, eps: float, alpha: float, steps: int, clean_start: float) -> None:
        super().__init__(model, eps, max(alpha, eps / steps), steps)
        self.clean_start = clean_start

    def start(self, images: Tensor) -> Tensor:
        noise = torch.empty_like(images).uniform_(-self.eps, self.eps)
        # a product and not a branch: the coin stays on the device
        return images + noise * (torch.rand((), device=images.device) >= self.clean_start)

    def step(self, adversarial: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        return clip_linf(adversarial.detach() + self.alpha * gradient.sign(), images, self.eps)


class SAT(Defense):
    """Single-step adversarial training with smooth activations, and the backward-only ablation of section 3."""

    options: SatOptions

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        with smooth_backward(options.smooth_backward in ("attack", "both")):
            if self.run.threat.norm != "Linf":
                return Perturbed(self.attack(batch.images, batch.targets, "pgd", **self.pgd_settings()))
            images = self.attack(
                batch.images,
                batch.targets,
                CoinStartPGD,
                bn=options.attack_bn,
                alpha=self.times_eps(options.step_ratio),
                steps=options.steps,
                clean_start=options.clean_start,
            )
        return Perturbed(images)

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        with smooth_backward(self.options.smooth_backward in ("update", "both")):
            logits = self.run.model(perturbed.images)
        return {"loss": self.cross_entropy(logits, batch.targets), "logits": logits}
