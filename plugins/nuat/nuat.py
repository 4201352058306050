"""Nuclear-norm adversarial training.

G. Sriramanan, S. Addepalli, A. Baburaj, R. V. Babu, Towards Efficient and Effective Adversarial Training, NeurIPS 2021.
"""

from __future__ import annotations

import torch
from timm_robust_plugins.gat.gat import Guided
from torch import Tensor

from .options import NuatOptions


def nuclear_distance(clean_logits: Tensor, adversarial_logits: Tensor, batch_size: int) -> Tensor:
    """Nuclear norm of the logit differences, divided by the batch size.

    Args:
        clean_logits, adversarial_logits: [B, K].
        batch_size: configured batch size, also for a smaller last batch (released code).
    """
    difference = (clean_logits - adversarial_logits).float()  # singular values need float32
    return torch.linalg.matrix_norm(difference, ord="nuc") / batch_size


class NuAT(Guided):
    """Guided training with the nuclear norm as distance, whose weight grows during training."""

    options: NuatOptions

    def distance(self, clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
        return nuclear_distance(clean_logits, adversarial_logits, self.run.recipe.batch_size)

    def on_epoch_start(self, epoch: int) -> None:
        ramp = self.options.ramp_share * self.run.epochs
        self.weight = self.options.weight * min(1.0, epoch / ramp if ramp else 1.0)
