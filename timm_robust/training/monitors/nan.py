"""Aborts training on a NaN or infinite loss or weight, and says which checkpoint is left and what to try."""

from __future__ import annotations

import math

from timm_robust.errors import RunFailed
from timm_robust.training.monitors.base import Callback, Step

INTERVAL = 50
"""Steps between two checks of the loss on a GPU, where reading it waits for the device; a CPU checks every step."""


class NaNMonitor(Callback):
    """Requires a finite loss, and finite weights after each epoch."""

    def on_step(self, step: Step) -> None:
        last = step.number == step.steps
        if self.context.run.device.type == "cpu" or step.number % INTERVAL == 0 or last:
            self.require_finite_loss(step.loss_sum.item(), step)
        if last:
            self.require_finite_weights(step)

    def require_finite_loss(self, total: float, step: Step) -> None:
        """Checks the loss.

        Args:
            total: sum of the epoch's loss so far.

        Raises:
            RunFailed: it is NaN or infinite.
        """
        if not math.isfinite(total):
            raise RunFailed(
                f"the loss is {total} in epoch {step.epoch + 1}, batch {step.number} of {step.steps}: "
                f"{self.context.kept()}; try a smaller --lr, --set clip_grad=1, or --precision fp32"
            )

    def require_finite_weights(self, step: Step) -> None:
        """Checks the weights, which can be lost while the loss is finite.

        bfloat16 convolutions on maps of 2x2 pixels do that on some CPUs.

        Raises:
            RunFailed: one is NaN or infinite.
        """
        for name, value in self.context.run.unwrapped_model.named_parameters():
            if not value.isfinite().all():
                raise RunFailed(
                    f"weight {name!r} is no longer finite after epoch {step.epoch + 1}: {self.context.kept()}; "
                    "try --precision fp32, a smaller --lr, or a larger --image-size"
                )
