"""PGD with an overridable objective, and two attacks of torchattacks in the form that training needs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn
from torchattacks.attack import Attack

from timm_robust.attacks.steps import gaussian_start, signed_step, uniform_start


class ObjectivePGD(Attack):
    """PGD under Linf that ascends `objective`; subclasses override that, and `start` or `step` where they differ.

        class MarginPGD(ObjectivePGD):
            def objective(self, logits, labels):
                return margin(logits, labels).sum()

    A subclass with settings of its own declares them in `__init__`, from where `Attacker.build` takes their names.

    Args:
        model: network under attack.
        eps: radius, in units of the [0, 1] range.
        alpha: step size, in the same units.
        steps: number of steps.
        random_start: start at a random point, by default a uniform one of the ball; otherwise at the image.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
    ) -> None:
        super().__init__(type(self).__name__, model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start

    def start(self, images: Tensor) -> Tensor:
        """First point [N, C, H, W] of the attack; called with `random_start` only."""
        return uniform_start(images, self.eps)

    def objective(self, logits: Tensor, labels: Tensor, *context: Any) -> Tensor:
        """Scalar that the attack ascends.

        Args:
            logits: [N, K], of the current points.
            labels: int64 [N].
            *context: further arguments of `forward`.
        """
        return F.cross_entropy(logits, labels)

    def step(self, adversarial: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        """Next point, inside the ball around `images` and inside [0, 1]; all [N, C, H, W]."""
        return signed_step(adversarial, gradient, images, alpha=self.alpha, eps=self.eps)

    def forward(self, images: Tensor, labels: Tensor, *context: Any) -> Tensor:
        """Adversarial images, float [N, C, H, W]; `context` goes to `objective`."""
        adversarial = self.start(images) if self.random_start else images
        for _ in range(self.steps):
            adversarial = adversarial.detach().requires_grad_(True)
            objective = self.objective(self.get_logits(adversarial), labels, *context)
            (gradient,) = torch.autograd.grad(objective, adversarial)
            adversarial = self.step(adversarial, gradient, images)
        return adversarial.detach()


class GaussianStartPGD(ObjectivePGD):
    """PGD that starts 0.001 of Gaussian noise away from the image, and not anywhere in the ball."""

    def start(self, images: Tensor) -> Tensor:
        return gaussian_start(images)


class WorstCaseAPGD(torchattacks.APGD):
    """APGD that returns the image of highest loss for every sample.

    torchattacks' own returns the clean image wherever the attack did not succeed or the sample was wrong already,
    which is right for measuring and useless for training.
    """

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.perturb(images.clone().detach(), labels.clone().detach(), best_loss=True)[1]


class UniformStartFFGSM(torchattacks.FFGSM):
    """FFGSM whose start is drawn once.

    torchattacks draws a normal tensor first and overwrites it, which costs 4 % of a training step on a CPU.
    """

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.targeted:
            return super().forward(images, labels)
        adversarial = uniform_start(images, self.eps).requires_grad_(True)
        loss = F.cross_entropy(self.get_logits(adversarial), labels)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        return signed_step(adversarial, gradient, images, alpha=self.alpha, eps=self.eps)
