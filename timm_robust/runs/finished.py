"""A finished run, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm_robust.runs.history import ROBUST_OVERFITTING, events, was_stopped
from timm_robust.runs.layout import EVALUATION, LAST, MANIFEST, METRICS, STATE


@dataclass
class FinishedRun:
    """A run of one method with one seed.

    Attributes:
        method: method, with its modifiers if any ("trades+awp").
        seed: random seed.
        folder: folder of the run, as `train` makes it.
        error: sentence that says why it failed; None unless it did.
        done: whether all epochs and measurements are there.
        history: rows of metrics.jsonl.
        evaluation: content of evaluation.json; empty if missing.
        manifest: content of manifest.json; empty if missing.
    """

    method: str
    seed: int
    folder: Path
    error: str | None = None
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    evaluation: dict[str, Any] = field(default_factory=dict, repr=False)
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)

    def read(self, attacks: Sequence[str]) -> None:
        """Reads the folder; the run is done if it has all epochs, and all of `attacks` measured on the test split.

        Args:
            attacks: names as `parse_attack` spells them; if empty, no evaluation is expected.
        """
        self.manifest = _json(self.folder / MANIFEST)
        self.evaluation = _json(self.folder / EVALUATION)
        try:
            lines = (self.folder / METRICS).read_text().splitlines()
            self.history = [json.loads(line) for line in lines if line]
        except (OSError, ValueError):
            self.history = []
        epochs = self.manifest.get("recipe", {}).get("epochs", float("inf"))
        measured = {"clean", *self.evaluation.get("attacks", {})} if self.evaluation else set()
        self.done = (len(self.history) >= epochs or was_stopped(self.history)) and measured.issuperset(attacks)

    @property
    def resumable(self) -> bool:
        """Whether an epoch was saved that training can go on from."""
        return (self.folder / MANIFEST).is_file() and (self.folder / LAST / STATE).is_file()

    @property
    def best_epoch(self) -> int:
        """Epoch of best/; 0 if there is none."""
        return max((row["epoch"] for row in self.history if row["best"]), default=0)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Events of catastrophic overfitting, in order."""
        return events(self.history)

    @property
    def fallen(self) -> list[dict[str, Any]]:
        """Events of robust overfitting, which end a run."""
        return events(self.history, ROBUST_OVERFITTING)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for comparison.json."""
        status = "failed" if self.error else "done" if self.done else "unfinished"
        return {
            "method": self.method,
            "seed": self.seed,
            "folder": self.folder.name,
            "status": status,
            "error": self.error,
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "events": self.events,
        }


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if missing or damaged, in which case the run counts as unfinished."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
