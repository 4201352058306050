"""Records of measurements: what all of them say, and the file. Torch-free at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.files import write_result
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from timm_robust.evaluation.inputs import EvalInputs


def about(inputs: EvalInputs, seed: int) -> dict[str, Any]:
    """Head of a record: checkpoint, data, threat and seed."""
    return {
        "checkpoint": inputs.name,
        "data": inputs.data,
        "n_examples": len(inputs),
        "threat": inputs.threat.to_dict(),
        "seed": seed,
    }


def write_record(path: str | Path | None, content: dict[str, Any]) -> bool:
    """Writes a record with versions and hardware, unless `path` is None; False if that failed."""
    return path is None or write_result(path, {**content, "versions": versions(), "hardware": hardware()}, Display())
