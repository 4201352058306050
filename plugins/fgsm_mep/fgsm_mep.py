"""FGSM-MEP: initial perturbations from the momentum of all previous epochs.

X. Jia, Y. Zhang, X. Wei, B. Wu, K. Ma, J. Wang, X. Cao, Prior-Guided Adversarial Initialization for Fast Adversarial
Training, ECCV 2022, arXiv:2207.08859 (the number is from memory).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.sample_table import SampleTable

from .options import FgsmMepOptions


def soft_labels(targets: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels with `smoothing` of their mass spread over the other classes.

    Args:
        targets: int64 [B].
        num_classes: number of classes K.
        smoothing: mass of the other classes together.

    Returns:
        float32 [B, K], rows sum to 1.
    """
    labels = torch.full((len(targets), num_classes), smoothing / (num_classes - 1), device=targets.device)
    return labels.scatter_(1, targets[:, None], 1 - smoothing)


def next_prior(
    prior: Tensor, momentum: Tensor, gradient: Tensor, *, decay: float, step: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Initial (perturbation, momentum) of the next epoch.

    Args:
        prior, momentum, gradient: [B, C, H, W]; the gradient is already divided by its mean absolute value.
        decay: decay of the momentum.
        step, eps: step size and radius, in units of the [0, 1] range.
    """
    momentum = gradient + decay * momentum
    return (prior + step * momentum.sign()).clamp(-eps, eps), momentum


class PriorFGSM(Attack):
    """FGSM from given perturbations; stores the gradient there as `gradient`."""

    def __init__(self, model: torch.nn.Module, eps: float, alpha: float) -> None:
        super().__init__("PriorFGSM", model)
        self.eps, self.alpha = eps, alpha
        self.gradient: Tensor | None = None

    def forward(self, images: Tensor, labels: Tensor, prior: Tensor) -> Tensor:
        """`labels` float [B, K], `prior` [B, C, H, W] inside the ball."""
        start = (images + prior).clamp(0, 1).requires_grad_(True)
        loss = F.cross_entropy(self.get_logits(start), labels)
        (self.gradient,) = torch.autograd.grad(loss, start)
        return images + (prior + self.alpha * self.gradient.sign()).clamp(-self.eps, self.eps)


class FGSMMEP(Defense):
    """One step from each sample's prior, and a penalty on the distance of the logits before and after it.

    As in the released code the prior is in the coordinates of the crop: it does not follow the image through crop and
    flip, which differ between epochs.
    """

    options: FgsmMepOptions
    norms = ("Linf",)

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        options = self.options
        shape = (run.in_chans, run.image_size, run.image_size)
        dtype = getattr(torch, options.table_dtype)
        self.priors = SampleTable(run, "fgsm-mep: perturbations", shape, dtype, options.table_place)
        self.momenta = SampleTable(run, "fgsm-mep: momenta", shape, dtype, options.table_place)
        # The released code divides by the L1 norm over the whole batch. Times the size of a full batch this is the mean
        # absolute value: the same signs, and numbers that float16 can hold.
        self.full = run.recipe.batch_size * shape[0] * shape[1] * shape[2]

    def on_epoch_start(self, epoch: int) -> None:
        if epoch % self.options.reset_epochs == 0:
            step = self.times_eps(min(1.0, self.options.step_ratio))
            self.priors.fill_uniform(step, self.run.seed + epoch, corners=True)
            self.momenta.fill(0.0)

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        prior = self.priors[batch.index]
        labels = soft_labels(batch.targets, self.run.num_classes, options.smoothing)
        attack = self.run.attacker.build(PriorFGSM, alpha=self.times_eps(options.step_ratio))
        images = self.attack(batch.images, labels, attack, prior, bn=options.attack_bn)
        extras = {"prior": prior, "labels": labels, "gradient": attack.gradient}
        return Perturbed(images, extras)

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        labels, prior = perturbed.extras["labels"], perturbed.extras["prior"]
        logits = self.run.model(perturbed.images)
        start_logits = self.run.model((batch.images + prior).clamp(0, 1))
        distance = F.mse_loss(logits.float(), start_logits.float())
        loss = F.cross_entropy(logits, labels) + self.options.weight * distance
        return {"loss": loss, "logits": logits, "distance": distance.detach()}

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        options, eps, gradient = self.options, self.run.threat.eps, perturbed.extras["gradient"]
        gradient = gradient * (self.full / gradient.abs().sum().clamp(min=1e-20))
        prior, momentum = next_prior(
            perturbed.extras["prior"],
            self.momenta[batch.index],
            gradient,
            decay=options.decay,
            step=self.times_eps(options.step_ratio),
            eps=eps,
        )
        self.priors[batch.index], self.momenta[batch.index] = prior, momentum

    def on_epoch_end(self, epoch: int) -> None:
        self.priors.merge()
        self.momenta.merge()

    def state_dict(self) -> dict[str, Any]:
        return {"priors": self.priors.state_dict(), "momenta": self.momenta.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.priors.load_state_dict(state["priors"])
        self.momenta.load_state_dict(state["momenta"])
