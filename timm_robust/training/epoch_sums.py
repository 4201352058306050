"""Sums of an epoch's training metrics, kept on the device: reading them waits for it."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_robust.data import Batch
from timm_robust.defense import StepOutput


class EpochSums:
    """Sums over the images of an epoch, on this process.

    Args:
        device: device of the batches.

    Attributes:
        totals: sum of each scalar of the steps' outputs, such as "loss".
        correct: number of images classified correctly, of those with logits.
        images: number of images.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals: dict[str, Tensor] = {}
        self.correct, self.images = torch.zeros((), device=device), 0

    def add(self, batch: Batch, output: StepOutput) -> None:
        """Adds a step."""
        self.images += len(batch)
        for name, value in output.items():
            if value.ndim == 0:
                before = self.totals.get(name, torch.zeros((), device=self.correct.device))
                self.totals[name] = before + value.detach() * len(batch)
        if "logits" in output:
            self.correct += (output["logits"].detach().argmax(1) == batch.targets).sum()

    def means(self) -> dict[str, float]:
        """Means over the images, as a row of metrics.jsonl names them."""
        means = {f"train_{name}": total.item() / self.images for name, total in self.totals.items()}
        return {**means, "train_accuracy": self.correct.item() / self.images}
