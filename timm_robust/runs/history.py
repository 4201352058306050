"""History and result of a training run, as `train` returns them. Torch-free until the model is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.threat import Threat

if TYPE_CHECKING:
    from timm_robust.evaluation.evaluate import Evaluation
    from timm_robust.models.pixel_model import PixelModel

CATASTROPHIC_OVERFITTING, ROBUST_OVERFITTING = "catastrophic overfitting", "robust overfitting"
"""Kinds of events in metrics.jsonl; an event without a kind is of the first."""


@dataclass
class TrainResult:
    """A finished run.

    Attributes:
        output: folder of the run, with best/, last/, metrics.jsonl, manifest.json and evaluation.json.
        threat: threat model that it was trained against.
        history: one row per epoch, as in metrics.jsonl.
        evaluation: accuracies of the best checkpoint on the test split; None if not asked for.
    """

    output: Path
    threat: Threat
    history: list[dict[str, Any]] = field(repr=False)
    evaluation: Evaluation | None = None

    @property
    def model(self) -> PixelModel:
        """The best checkpoint, loaded and ready."""
        from timm_robust.runs.checkpoint import load  # here, because it imports torch

        return load(self.output)

    def __repr__(self) -> str:
        best = best_row(self.history)
        lines = [f"{self.output}: {len(self.history)} epochs against {self.threat}"]
        if best:
            lines.append(
                f"best epoch {best['epoch']}: validation clean {best['val_clean']:.1%}, robust {best['val_robust']:.1%}"
            )
            lines.append(overfitting_line(self.history))
        if self.evaluation:
            lines += ["on the test split:", *(f"  {line}" for line in repr(self.evaluation).splitlines())]
        return "\n".join(lines)


def was_stopped(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a monitor or callback ended the run before its last epoch, by its rows: nothing is left to train."""
    return bool(rows) and any(event["answer"] == "stop" for event in rows[-1].get("events", []))


def events(rows: Iterable[Mapping[str, Any]], kind: str = CATASTROPHIC_OVERFITTING) -> list[dict[str, Any]]:
    """Events of one kind, in order."""
    found = [event for row in rows for event in row.get("events", [])]
    return [event for event in found if event.get("kind", CATASTROPHIC_OVERFITTING) == kind]


def add_events(
    row: dict[str, Any], before: Iterable[Mapping[str, Any]] = (), after: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Adds events to a row of metrics.jsonl, before and after those that it has."""
    if found := [*before, *row.get("events", []), *after]:
        row["events"] = found


def best_row(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of the epoch in best/; None if there is none yet."""
    return max((row for row in rows if row.get("best")), key=lambda row: row["epoch"], default=None)


def best_and_last(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Robust accuracy of the epoch in best/ and of the last one, in [0, 1], on each split that was measured."""
    best = best_row(rows)
    if best is None:
        return {}
    both = [{"validation": row["val_robust"], **_diagnosed(row)} for row in (best, rows[-1])]
    return {name: (value, both[1][name]) for name, value in both[0].items() if name in both[1]}


def _diagnosed(row: Mapping[str, Any]) -> dict[str, float]:
    found = row.get("diagnosis", {})
    return {"training": found["train_robust"], "test": found["test_robust"]} if found else {}


def overfitting_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Drop of robust accuracy from the best epoch to the last, in one line; empty if there is no best one yet."""
    best = best_row(rows)
    if best is None:
        return ""
    parts: list[str] = []
    for name, (high, low) in best_and_last(rows).items():
        where = (f" (epoch {best['epoch']})", f" (epoch {rows[-1]['epoch']})") if not parts else ("", "")
        parts.append(f"{name} images: best {high:.1%}{where[0]}, last {low:.1%}{where[1]}, gap {points(high, low)}")
    return "robust accuracy on " + "; ".join(parts)


def points(high: float, low: float) -> str:
    """The difference of two accuracies, in percentage points."""
    return f"{round(100 * (high - low), 1) + 0.0:.1f} points"
