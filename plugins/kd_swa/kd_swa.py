"""KD-SWA: knowledge distillation against robust overfitting; its weight averaging is the modifier `swa`.

T. Chen, Z. Zhang, S. Liu, S. Chang, Z. Wang, Robust Overfitting may be mitigated by properly learned smoothening,
ICLR 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput

from .options import KdSwaOptions


def distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Batch mean of KL(teacher || student) of softened predictions, times the squared temperature.

    The released code uses the cross-entropy, which is this plus the teacher's entropy: the gradient is the same, and
    this is 0 where the teacher is matched. The square keeps the gradients' scale independent of the temperature.

    Args:
        logits, teacher_logits: [B, K].
        temperature: divisor of both logits.
    """
    student, teacher = (F.log_softmax(each / temperature, dim=1) for each in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


class KDSWA(Defense):
    """PGD training with the labels and with two frozen teachers' predictions on the same images."""

    options: KdSwaOptions

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        options, teachers = self.options, self.run.teachers
        logits = self.run.model(perturbed.images)
        with torch.no_grad():
            natural, robust = (teachers[name](perturbed.images) for name in ("natural_teacher", "robust_teacher"))
        hard = self.cross_entropy(logits, batch.targets)
        loss = (
            options.label_weight * hard
            + options.natural_weight * distillation_loss(logits, natural, temperature=options.temperature)
            + options.robust_weight * distillation_loss(logits, robust, temperature=options.temperature)
        )
        return {"loss": loss, "logits": logits, "label_loss": hard.detach()}
