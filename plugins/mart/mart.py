"""MART: misclassification-aware adversarial training.

Y. Wang, D. Zou, J. Yi, J. Bailey, X. Ma, Q. Gu, Improving Adversarial Robustness Requires Revisiting Misclassified
Examples, ICLR 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_robust.attacks.pgd import GaussianStartPGD
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput

from .options import MartOptions


def mart_loss(
    adversarial_loss: Tensor, clean_logits: Tensor, adversarial_logits: Tensor, targets: Tensor, *, beta: float
) -> Tensor:
    """Boosted cross-entropy plus `beta` times the mean of (1 - p_y(x)) KL(p(x) || p(x')); nothing is detached.

    Args:
        adversarial_loss: scalar, cross-entropy on adversarial images, to which the margin term is added.
        clean_logits, adversarial_logits: [B, K].
        targets: int64 [B].
        beta: weight of the regulariser, called lambda in the paper.
    """
    # in half precision 1.0001 is 1, and the margin's logarithm infinite
    precision = torch.promote_types(adversarial_logits.dtype, torch.float32)
    log_clean = F.log_softmax(clean_logits, dim=1, dtype=precision)
    log_adversarial = F.log_softmax(adversarial_logits, dim=1, dtype=precision)
    label = targets.unsqueeze(1)
    runner_up = log_adversarial.exp().scatter(1, label, 0.0).amax(1)
    margin = -torch.log(1.0001 - runner_up).mean()
    divergence = F.kl_div(log_adversarial, log_clean, log_target=True, reduction="none").sum(1)
    weight = 1.0000001 - log_clean.exp().gather(1, label).squeeze(1)
    return adversarial_loss + margin + beta * (weight * divergence).mean()


class MART(Defense):
    """Boosted cross-entropy on adversarial images, and a divergence with most weight where the network is unsure."""

    options: MartOptions
    norms = ("Linf",)

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        settings = {"steps": options.steps, "alpha": self.times_eps(options.step_ratio), "bn": options.attack_bn}
        return Perturbed(self.attack(batch.images, batch.targets, GaussianStartPGD, **settings))

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        clean_logits = self.run.model(batch.images)
        adversarial_logits = self.run.model(perturbed.images)
        adversarial_loss = self.cross_entropy(adversarial_logits, batch.targets)
        loss = mart_loss(adversarial_loss, clean_logits, adversarial_logits, batch.targets, beta=self.options.beta)
        return {"loss": loss, "logits": adversarial_logits, "adversarial_loss": adversarial_loss.detach()}
