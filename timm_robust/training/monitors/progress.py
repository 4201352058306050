"""Progress of training on the terminal: a bar over the steps of an epoch, and a line for each finished epoch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from timm_robust.training.monitors.base import Callback, Step


class ProgressMonitor(Callback):
    """Draws the bar, with the mean loss and the last accuracies as its status."""

    def __init__(self) -> None:
        self._bar = ExitStack()

    def on_epoch_start(self, epoch: int) -> None:
        self._bar.close()  # of an epoch that was discarded
        run = self.context.run
        self._bar.enter_context(self.context.display.bar(f"epoch {epoch + 1}/{run.epochs}", run.steps_per_epoch))

    def on_step(self, step: Step) -> None:
        display = self.context.display
        if display.due():
            status = f"loss {step.loss_sum.item() / step.images:.3f}  {display.status}"
            display.advance(step.number, status=status)
        if step.number == step.steps:
            self._bar.close()

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        self.context.display.status = f"validation: clean {row['val_clean']:.1%} robust {row['val_robust']:.1%}"

    def on_epoch_saved(self, row: Mapping[str, Any]) -> None:
        self.context.say(
            f"epoch {row['epoch']:>3}/{self.context.run.epochs}  loss {row['train_loss']:.3f}  "
            f"train {row['train_accuracy']:6.1%}  validation clean {row['val_clean']:6.1%}  "
            f"robust {row['val_robust']:6.1%}  {row['seconds']:.1f} s" + ("  *best" if row["best"] else "")
        )

    def on_exit(self) -> None:
        self._bar.close()
