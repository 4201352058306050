"""Standard training: cross-entropy on clean images, the reference for robust training."""

from __future__ import annotations

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput


class Standard(Defense):
    """Trains on clean images."""

    adversarial = False

    def perturb(self, batch: Batch) -> Perturbed:
        return Perturbed(batch.images)

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        logits = self.run.model(batch.images)
        return {"loss": self.cross_entropy(logits, batch.targets), "logits": logits}
