"""SEAT, as coded by its authors.

Z. Li, D. Yu, Stable and Efficient Adversarial Training through Local Linearization, arXiv:2210.05373. The paper's
equations were not available; this follows the released code. (Self-Ensemble Adversarial Training, also called SEAT,
is another method.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.steps import corner_start, signed_step
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput

from .options import SeatOptions


def linearity_residual(clean_losses: Tensor, adversarial_losses: Tensor, slopes: Tensor, *, per_sample: bool) -> Tensor:
    """Deviation of the adversarial loss from its linear prediction along the perturbation.

    Args:
        clean_losses, adversarial_losses: [B], cross-entropy of each sample.
        slopes: [B], inner product of each perturbation with the sample's clean input gradient; detached here.
        per_sample: mean of absolute residuals; otherwise the absolute value of their mean, where signs cancel (released
            code).
    """
    residuals = adversarial_losses - clean_losses - slopes.detach()
    return residuals.abs().mean() if per_sample else residuals.mean().abs()


def seat_loss(
    clean_losses: Tensor, adversarial_losses: Tensor, slopes: Tensor, *, weight: float, flood: float, per_sample: bool
) -> Tensor:
    """Flooded adversarial loss plus the weighted residual; gradients flow through both losses, not through the slopes.

    Args:
        clean_losses, adversarial_losses, slopes: [B], see `linearity_residual`.
        weight: weight of the residual.
        flood: level b of |L - b| + b; 0 changes nothing.
    """
    flooded = (adversarial_losses.mean() - flood).abs() + flood
    return flooded + weight * linearity_residual(clean_losses, adversarial_losses, slopes, per_sample=per_sample)


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Batch mean of the largest wrong probability minus the right one.

    Args:
        logits: [B, K].
        targets: int64 [B].
    """
    probabilities = logits.softmax(1)
    right = probabilities.gather(1, targets[:, None]).squeeze(1)
    wrong = probabilities.scatter(1, targets[:, None], -1.0).max(1).values
    return (wrong - right).mean()


class LinearityStep(Attack):
    """One signed step from a corner of the ball on margin plus residual; stores the clean gradient as `gradient`.

    Args:
        model: network under attack.
        eps, alpha, noise: radius, step size and distance of the corner, in units of the [0, 1] range.
        weight: weight of the residual.
        attack_loss: "margin" or "ce".
        per_sample: see `linearity_residual`.
        gradient_scale: factor on the model's input gradients, see `Attacker`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        eps: float,
        alpha: float,
        noise: float,
        weight: float,
        attack_loss: str,
        per_sample: bool,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__("LinearityStep", model)
        self.eps, self.alpha, self.noise, self.weight = eps, alpha, noise, weight
        self.attack_loss, self.per_sample, self.gradient_scale = attack_loss, per_sample, gradient_scale
        self.gradient: Tensor | None = None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        clean = images.clone().requires_grad_(True)
        clean_losses = F.cross_entropy(self.get_logits(clean), labels, reduction="none")
        (gradient,) = torch.autograd.grad(clean_losses.sum(), clean)  # of each sample, not of the mean
        gradient = gradient / self.gradient_scale
        self.gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # float16 may overflow; one sample must not spoil the loss
        start = corner_start(images, self.noise).requires_grad_(True)
        logits = self.get_logits(start)
        losses = F.cross_entropy(logits, labels, reduction="none")
        slopes = slope(start - images, self.gradient)
        residual = linearity_residual(clean_losses.detach(), losses, slopes, per_sample=self.per_sample)
        objective = margin(logits, labels) if self.attack_loss == "margin" else losses.mean()
        (ascent,) = torch.autograd.grad(objective + self.weight * residual, start)
        return signed_step(start, ascent, images, alpha=self.alpha, eps=self.eps)


def slope(perturbation: Tensor, gradient: Tensor) -> Tensor:
    """Inner product of each sample's perturbation and gradient; both [B, C, H, W], gives [B]."""
    return (perturbation * gradient).flatten(1).sum(1)


class SEAT(Defense):
    """Flooded adversarial loss plus the linearity residual, whose clean gradient the attack has computed already.

    The released code computes that gradient again in the loss; the value is the same, since weights and batch are.
    """

    options: SeatOptions
    norms = ("Linf",)

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        attack = self.run.attacker.build(
            LinearityStep,
            alpha=self.times_eps(options.step_ratio),
            noise=self.times_eps(options.noise_ratio),
            weight=options.weight,
            attack_loss=options.attack_loss,
            per_sample=options.per_sample,
        )
        images = self.attack(batch.images, batch.targets, attack, bn=options.attack_bn)
        return Perturbed(images, {"slopes": slope(images - batch.images, attack.gradient)})

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        options = self.options
        logits = self.run.model(perturbed.images)
        adversarial_losses = F.cross_entropy(logits, batch.targets, reduction="none")
        clean_losses = F.cross_entropy(self.run.model(batch.images), batch.targets, reduction="none")
        slopes = perturbed.extras["slopes"]
        loss = seat_loss(
            clean_losses,
            adversarial_losses,
            slopes,
            weight=options.weight,
            flood=options.flood,
            per_sample=options.per_sample,
        )
        residual = linearity_residual(clean_losses, adversarial_losses, slopes, per_sample=options.per_sample)
        return {"loss": loss, "logits": logits, "residual": residual.detach()}
