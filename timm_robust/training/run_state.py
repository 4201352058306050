"""Progress of a run, in one object: the engine writes it, everybody else reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunState:
    """Progress of a run.

    Attributes:
        epoch: number of finished epochs.
        best: (robust, clean) validation accuracy of the epoch in best/, in [0, 1], or (clean, robust) for a method that
            trains against no adversary; -1 before there is one.
        rollbacks: number of returns to an earlier epoch.
        rows: rows of metrics.jsonl, one per finished epoch.
    """

    epoch: int = 0
    best: tuple[float, float] = (-1.0, -1.0)
    rollbacks: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
