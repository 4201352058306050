"""Helper-based adversarial training.

R. Rade, S.-M. Moosavi-Dezfooli, Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off,
ICLR 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm_robust_plugins.trades.trades import TRADES, trades_loss
from torch import Tensor

from timm_robust.data.batch import Batch
from timm_robust.defense import Perturbed, StepOutput

from .options import HatOptions


def hat_loss(
    clean_loss: Tensor,
    clean_logits: Tensor,
    adversarial_logits: Tensor,
    helper_logits: Tensor,
    helper_labels: Tensor,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """TRADES' loss plus `gamma` times the cross-entropy on helper images.

    Args:
        clean_loss: scalar, cross-entropy on clean images.
        clean_logits, adversarial_logits, helper_logits: [B, K].
        helper_labels: int64 [B], predictions of a standard network on the adversarial images.
        beta, gamma: weights of the divergence and of the helper images.
    """
    robust = trades_loss(clean_loss, clean_logits, adversarial_logits, beta=beta)
    return robust + gamma * F.cross_entropy(helper_logits, helper_labels)


class HAT(TRADES):
    """TRADES plus helper images beyond the ball, labelled by a standard network's prediction at the ball's edge."""

    options: HatOptions

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        model, options = self.run.model, self.options
        helper_images = batch.images + options.h * (perturbed.images - batch.images)  # not clipped to [0, 1]
        with torch.no_grad():
            helper_labels = self.run.teachers["helper"](perturbed.images).argmax(1)
        # three forward passes, so that BatchNorm sees each kind of image separately, as in the released code
        clean_logits, adversarial_logits, helper_logits = map(model, (batch.images, perturbed.images, helper_images))
        clean_loss = self.cross_entropy(clean_logits, batch.targets)
        loss = hat_loss(
            clean_loss,
            clean_logits,
            adversarial_logits,
            helper_logits,
            helper_labels,
            beta=options.beta,
            gamma=options.gamma,
        )
        fooled = (helper_labels != batch.targets).float().mean()
        return {"loss": loss, "logits": adversarial_logits, "clean_loss": clean_loss.detach(), "helper_fooled": fooled}
