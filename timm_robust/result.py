"""What `train` returns. Torch-free until the model is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.threat import Threat

if TYPE_CHECKING:
    from timm_robust.evaluation import Evaluation
    from timm_robust.models import PixelModel


@dataclass
class TrainResult:
    """A finished run.

    Attributes:
        output: the run's folder, with best/, last/, metrics.jsonl, manifest.json and evaluation.json.
        threat: what it was trained against.
        history: one row per epoch, as in metrics.jsonl.
        evaluation: accuracies of the best checkpoint on the test split, None where not asked for.
    """

    output: Path
    threat: Threat
    history: list[dict[str, Any]] = field(repr=False)
    evaluation: Evaluation | None = None

    @property
    def model(self) -> PixelModel:
        """The best checkpoint, loaded and ready."""
        from timm_robust.checkpoint import load

        return load(self.output)

    def __repr__(self) -> str:
        best = next((row for row in reversed(self.history) if row.get("best")), None)
        lines = [f"{self.output}: {len(self.history)} epochs against {self.threat}"]
        if best:
            lines.append(
                f"best epoch {best['epoch']}: validation clean {best['val_clean']:.1%}, robust {best['val_robust']:.1%}"
            )
        if self.evaluation:
            lines += ["on the test split:", *(f"  {line}" for line in repr(self.evaluation).splitlines())]
        return "\n".join(lines)


def was_stopped(rows: list[dict[str, Any]]) -> bool:
    """Whether catastrophic overfitting ended a run, by the rows of its metrics.jsonl: nothing is left to train."""
    return bool(rows) and any(event["answer"] == "stop" for event in rows[-1].get("events", []))
