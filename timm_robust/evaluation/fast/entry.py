"""The fast mode as an entry of an evaluation's record: settings, progress in plain values, several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.errors import unknown
from timm_robust.evaluation.fast.network import PRECISIONS
from timm_robust.evaluation.fast.run import run_fast
from timm_robust.threat import Threat
from timm_robust.utils import distributed as processes

JOBS = ("ended", "close")
"""What a state has for each job, bool [N, jobs]."""


@dataclass(frozen=True)
class FastMode:
    """How the fast mode crafts.

    Attributes:
        precision: "fp32" or "bf16"; verdicts are in float32 either way.
        compile: compile full batches, which pays on a GPU.

    Raises:
        UserError: another precision.
    """

    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision of the fast mode", self.precision, PRECISIONS)


def fast_entry(
    mode: FastMode,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    version: str,
    batch_size: int,
    seed: int,
    on_progress: Callable[[str, int, int, float], None] | None,
    keep: Callable[[dict[str, Any]], None] | None,
    progress: Mapping[str, Any],
) -> dict[str, Any]:
    """Runs it on this process's share of the images; the entry is of all images.

    Args:
        mode: how it crafts; the other settings are those of `run_fast`.
        keep: given this process's progress as plain values.
        progress: such values, of a run that was stopped; empty for none.
    """
    rows = processes.shard(len(images))
    result = run_fast(
        model,
        images if processes.count() == 1 else images[rows],  # a copy of ImageNet's would be 3 GB
        targets if processes.count() == 1 else targets[rows],
        threat,
        version=version,
        batch_size=batch_size,
        seed=seed,
        precision=mode.precision,
        compile=mode.compile,
        indices=rows,
        on_progress=on_progress,
        save=None if keep is None else lambda state: keep(_plain(state)),
        resume=_tensors(progress) if progress else None,
    )
    fell_to = processes.merged(result.fell_to)
    places = range(1, len(result.after) + 1)
    after = [((fell_to < 0) | (fell_to > place)).double().mean().item() for place in places]
    return {
        "implementation": "timm-robust fast mode",
        "mode": "fast",
        "version": version,
        "precision": mode.precision,
        "compile": mode.compile,
        "batch_size": batch_size,
        "processes": processes.count(),
        "after": dict(zip(result.after, after, strict=True)),
        "seconds_by_attack": result.seconds,
        "robust": (fell_to < 0).int().tolist(),
    }


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    marks = {name: ["".join("01"[mark] for mark in row) for row in state[name].int().tolist()] for name in JOBS}
    return {**state, "fell_to": state["fell_to"].tolist(), **marks}


def _tensors(values: Mapping[str, Any]) -> dict[str, Any]:
    marks = {
        name: torch.tensor([[mark == "1" for mark in row] for row in values[name]], dtype=torch.bool) for name in JOBS
    }
    return {**values, "fell_to": torch.tensor(values["fell_to"]), **marks}
