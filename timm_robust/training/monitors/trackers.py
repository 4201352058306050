"""Experiment trackers of accelerate, such as TensorBoard: each epoch's numbers are logged to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from timm_robust.training.monitors.base import Callback, CallbackContext


class TrackerMonitor(Callback):
    """Logs the numbers of each row of metrics.jsonl.

    Args:
        accelerator: owns the trackers.
        threat: the run's full threat, as text.
    """

    def __init__(self, accelerator: Accelerator, threat: str) -> None:
        self.accelerator, self.threat = accelerator, threat

    def on_run_start(self, context: CallbackContext) -> None:
        self.accelerator.init_trackers("timm-robust", config={"seed": context.run.seed, "threat": self.threat})

    def on_epoch_saved(self, row: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "epoch"}
        self.accelerator.log(numbers, step=row["epoch"])

    def on_run_end(self, rows: list[dict[str, Any]]) -> None:
        self.accelerator.end_training()
