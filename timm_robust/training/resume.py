"""The files of a run: best/, last/ and metrics.jsonl, written after each epoch and read back to resume.

A run is saved between epochs only, so it needs no random state: the engine seeds each epoch by its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_robust.errors import RunFailed
from timm_robust.models.pixel_model import PixelModel
from timm_robust.runs.checkpoint import load_state, rescue, save_model, save_state
from timm_robust.runs.layout import BEST, LAST, METRICS
from timm_robust.training.run_state import RunState
from timm_robust.utils.files import write_text
from timm_robust.utils.progress import Display


class RunFiles:
    """Writes and reads the files of one run.

    Args:
        output: the run's folder.
        metadata: entries of every checkpoint's model.json.
        model: network that is trained.
        eval_model: network that is checked and saved: the same, or an average of its weights.
        state: progress of the run.
        display: shows warnings.
        writes: whether this process writes files, which the first one does.
    """

    def __init__(
        self,
        output: Path,
        metadata: Mapping[str, Any],
        *,
        model: PixelModel,
        eval_model: PixelModel,
        state: RunState,
        display: Display,
        writes: bool,
    ) -> None:
        self.output, self.metadata = output, metadata
        self.model, self.eval_model = model, eval_model
        self.state, self.display, self.writes = state, display, writes

    def exist(self) -> bool:
        """Whether an epoch was ever saved; not if the run was killed in its first, or while a teacher was trained."""
        return (self.output / METRICS).exists()

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The state in last/, and the rows up to its epoch."""
        state = load_state(self.output / LAST)
        lines = (self.output / METRICS).read_text().splitlines()
        return state, [json.loads(line) for line in lines if line][: state["epoch"]]

    def save(self, rows: Sequence[Mapping[str, Any]], state: Callable[[], dict[str, Any]], *, final: bool) -> None:
        """Writes best/, last/ and metrics.jsonl; a full disk costs this epoch's files and not the run.

        Args:
            rows: rows of metrics.jsonl, the last of this epoch.
            state: makes what resuming needs beside the weights.
            final: whether this is the last epoch.

        Raises:
            RunFailed: the final epoch could not be saved; says where the model is instead.
        """
        if not self.writes:
            return
        output, model, row = self.output, self.eval_model, rows[-1]
        metrics = {name: value for name, value in row.items() if name != "epoch"}
        metadata = {**self.metadata, "epoch": row["epoch"], "metrics": metrics}
        try:
            self.write_metrics(rows)
            if row["best"]:
                save_model(output / BEST, model, metadata)
            save_model(output / LAST, model, metadata)
            save_state(output / LAST, state())
        except OSError as error:
            if final:
                raise RunFailed(rescue(model, metadata, output, error)) from error
            self.display.warn(
                f"epoch {row['epoch']} could not be saved ({error}); training goes on, the next epoch tries again"
            )

    def save_aside(self, folder: str, **entries: Any) -> None:
        """Saves the trained weights as they are in a subfolder of the run's: see `TrainContext.save`."""
        if not self.writes:
            return
        metadata = {**self.metadata, "epoch": self.state.epoch + 1, **entries}
        try:
            save_model(self.output / folder, self.model, metadata)
        except OSError as error:
            self.display.warn(f"checkpoint {folder} could not be saved ({error}); training goes on")

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes all rows, and does not append: a resumed run replaces what an interrupted epoch may have left."""
        if self.writes:
            write_text(self.output / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
