"""A finished run, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm_robust.runs.history import ROBUST_OVERFITTING, events, was_stopped


@dataclass
class FinishedRun:
    """One method with one seed.

    Attributes:
        folder: of the run, as `train` makes it.
        error: the sentence of what ended it, None unless it failed.
        history: rows of metrics.jsonl.
        evaluation: content of evaluation.json; empty where there is none.
        manifest: content of manifest.json; empty where there is none.
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
        """Reads the folder; `done` says whether all epochs are there, and `attacks` measured on the test split.

        Args:
            attacks: names as `parse_attack` spells them; with none, no evaluation is expected.
        """
        self.manifest = _json(self.folder / "manifest.json")
        self.evaluation = _json(self.folder / "evaluation.json")
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
            self.history = [json.loads(line) for line in lines if line]
        except (OSError, ValueError):
            self.history = []
        epochs = self.manifest.get("recipe", {}).get("epochs", float("inf"))
        measured = {"clean", *self.evaluation.get("attacks", {})} if self.evaluation else set()
        self.done = (len(self.history) >= epochs or was_stopped(self.history)) and measured.issuperset(attacks)

    @property
    def resumable(self) -> bool:
        """Whether an epoch is kept that training can go on from."""
        return (self.folder / "manifest.json").is_file() and (self.folder / "last" / "state.pt").is_file()

    @property
    def best_epoch(self) -> int:
        """Epoch of best/; 0 without any."""
        return max((row["epoch"] for row in self.history if row["best"]), default=0)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Catastrophic overfitting, in the order in which it was seen."""
        return events(self.history)

    @property
    def fallen(self) -> list[dict[str, Any]]:
        """Robust overfitting that ended the run."""
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
    """The object in a file; empty where it is not there or damaged, and the run then counts as unfinished."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
