"""Guided adversarial training.

G. Sriramanan, S. Addepalli, A. Baburaj, R. V. Babu, Guided Adversarial Attack for Evaluating and Enhancing Adversarial
Defenses, NeurIPS 2020, arXiv:2011.14969.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.steps import corner_start, signed_step
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput

from .options import GatOptions


def squared_distance(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """Batch mean of the squared Euclidean distance between two predictions.

    Args:
        clean_logits, adversarial_logits: [B, K].
    """
    return (clean_logits.softmax(1) - adversarial_logits.softmax(1)).square().sum(1).mean()


class GuidedStep(Attack):
    """One signed step from a random corner of a small box, on cross-entropy plus an optional distance of the logits.

    Args:
        model: network under attack.
        eps, alpha, noise: radius, step size and half width of the box, in units of the [0, 1] range.
        distance: function of (clean logits, adversarial logits) to a scalar.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        eps: float,
        alpha: float,
        noise: float,
        distance: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__("GuidedStep", model)
        self.eps, self.alpha, self.noise, self.distance = eps, alpha, noise, distance

    def forward(self, images: Tensor, labels: Tensor, weight: float = 0.0) -> Tensor:
        """`weight` of the distance; 0 skips it and the clean forward pass."""
        start = corner_start(images, self.noise).requires_grad_(True)
        logits = self.get_logits(start)
        loss = F.cross_entropy(logits, labels)
        if weight:
            with torch.no_grad():
                clean = self.get_logits(images)
            loss = loss + weight * self.distance(clean, logits)
        (gradient,) = torch.autograd.grad(loss, start)
        return signed_step(start, gradient, images, alpha=self.alpha, eps=self.eps)


class GuidedOptions(Protocol):
    """Options that GAT and NuAT have in common."""

    noise_ratio: float
    step_ratio: float
    attack_bn: str


class Guided(Defense):
    """Base of GAT and NuAT: an attack that is guided in every other step, and clean loss plus a weighted distance."""

    options: GuidedOptions
    norms = ("Linf",)
    iteration = 0
    weight = 0.0

    def distance(self, clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
        """Distance between two predictions [B, K], a scalar; differs by method."""
        raise NotImplementedError

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        attack = self.run.attacker.build(
            GuidedStep,
            alpha=self.times_eps(options.step_ratio),
            noise=self.times_eps(options.noise_ratio),
            distance=self.distance,
        )
        weight = self.weight if self.iteration % 2 else 0.0
        return Perturbed(self.attack(batch.images, batch.targets, attack, weight, bn=options.attack_bn))

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        adversarial_logits = self.run.model(perturbed.images)
        clean_logits = self.run.model(batch.images)
        distance = self.distance(clean_logits, adversarial_logits)
        loss = self.cross_entropy(clean_logits, batch.targets) + self.weight * distance
        return {"loss": loss, "logits": adversarial_logits, "distance": distance.detach()}

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        self.iteration += 1

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]


class GAT(Guided):
    """Guided training with the squared distance of probabilities."""

    options: GatOptions

    def distance(self, clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
        return squared_distance(clean_logits, adversarial_logits)

    def on_epoch_start(self, epoch: int) -> None:
        late = epoch >= self.options.late_share * self.run.epochs
        self.weight = self.options.weight * (self.options.late_factor if late else 1.0)
