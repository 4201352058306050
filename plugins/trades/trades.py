"""TRADES.

H. Zhang, Y. Yu, J. Jiao, E. P. Xing, L. El Ghaoui, M. I. Jordan, Theoretically Principled Trade-off between Robustness
and Accuracy, ICML 2019, arXiv:1901.08573.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput

from .options import TradesOptions


def trades_loss(clean_loss: Tensor, clean_logits: Tensor, adversarial_logits: Tensor, *, beta: float) -> Tensor:
    """Clean loss plus `beta` times the batch mean of KL(p(x) || p(x')); gradients flow through both predictions.

    Args:
        clean_loss: scalar, cross-entropy on clean images.
        clean_logits, adversarial_logits: [B, K].
        beta: weight of the regulariser, called 1/lambda in the paper (section 4).
    """
    divergence = F.kl_div(
        F.log_softmax(adversarial_logits, dim=1),
        F.log_softmax(clean_logits, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return clean_loss + beta * divergence


class TRADES(Defense):
    """Cross-entropy on clean images plus the divergence between clean and adversarial predictions."""

    options: TradesOptions
    norms = ("Linf",)

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        settings = {"steps": options.steps, "alpha": self.times_eps(options.step_ratio), "bn": options.attack_bn}
        return Perturbed(self.attack(batch.images, batch.targets, "tpgd", **settings))

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        clean_logits = self.run.model(batch.images)
        adversarial_logits = self.run.model(perturbed.images)
        clean_loss = self.cross_entropy(clean_logits, batch.targets)
        loss = trades_loss(clean_loss, clean_logits, adversarial_logits, beta=self.options.beta)
        return {"loss": loss, "logits": adversarial_logits, "clean_loss": clean_loss.detach()}
