"""Learnable boundary guided adversarial training.

J. Cui, S. Liu, L. Wang, J. Jia, Learnable Boundary Guided Adversarial Training, ICCV 2021, arXiv:2011.11164.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm_robust_plugins.trades.trades import TRADES, trades_loss
from torch import Tensor, nn

from timm_robust.data.batch import Batch
from timm_robust.defense import Perturbed, StepOutput

from .options import LbgatOptions


def lbgat_loss(
    natural_loss: Tensor, natural_logits: Tensor, clean_logits: Tensor, adversarial_logits: Tensor, *, beta: float
) -> Tensor:
    """Natural loss, plus the mean squared distance of adversarial from natural logits, plus TRADES' divergence.

    Gradients flow into the natural logits too, so that the natural network learns a boundary that can be followed.

    Args:
        natural_loss: scalar, cross-entropy of the natural network on clean images.
        natural_logits: [B, K], of the natural network on clean images.
        clean_logits, adversarial_logits: [B, K], of the robust network.
        beta: weight of the divergence.
    """
    guidance = F.mse_loss(adversarial_logits, natural_logits)
    return trades_loss(natural_loss + guidance, clean_logits, adversarial_logits, beta=beta)


class LBGAT(TRADES):
    """The robust network is trained without labels: it follows the logits of a natural network trained with it."""

    options: LbgatOptions

    def auxiliary_model(self, build: Callable[..., nn.Module]) -> nn.Module:
        name = self.options.natural_model
        return build(name) if name else build()

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        beta = self.options.beta
        adversarial_logits = self.run.model(perturbed.images)
        with torch.set_grad_enabled(beta > 0):  # at 0 too, since the released code's BatchNorm always sees clean images
            clean_logits = self.run.model(batch.images)
        natural_logits = self.run.auxiliary_model(batch.images)
        natural_loss = self.cross_entropy(natural_logits, batch.targets)
        loss = lbgat_loss(natural_loss, natural_logits, clean_logits, adversarial_logits, beta=beta)
        return {"loss": loss, "logits": adversarial_logits, "natural_loss": natural_loss.detach()}
