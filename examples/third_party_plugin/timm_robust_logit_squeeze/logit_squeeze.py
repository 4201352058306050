"""Logit squeezing.

After H. Kannan, A. Kurakin, I. Goodfellow, Adversarial Logit Pairing, arXiv:1803.06373, which squeezes the logits of
clean or noisy images; here the penalty joins PGD adversarial training.
"""

from __future__ import annotations

from torch import Tensor

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput

from .options import LogitSqueezeOptions


def squeeze_penalty(logits: Tensor) -> Tensor:
    """Batch mean of the squared L2 norm; logits: [B, K]."""
    return logits.square().sum(dim=1).mean()


class LogitSqueeze(Defense):
    """Cross-entropy on PGD's images plus `weight` times the squared norm of their logits."""

    options: LogitSqueezeOptions

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        logits = self.run.model(perturbed.images)
        squeeze = squeeze_penalty(logits)
        loss = self.cross_entropy(logits, batch.targets) + self.options.weight * squeeze
        return {"loss": loss, "logits": logits, "squeeze": squeeze.detach()}
