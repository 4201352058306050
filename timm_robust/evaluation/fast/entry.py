"""The fast mode as an entry of an evaluation's record: plain values on disk, images shared among processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from timm_robust.evaluation.fast.run import run_fast
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings, FastMode
from timm_robust.evaluation.state import Slot
from timm_robust.utils import distributed
from timm_robust.utils.progress import Progress

JOBS = ("ended", "close")
"""Parts of a state with a value for each job, bool [N, jobs]."""


def fast_entry(
    inputs: EvalInputs, version: str, settings: EvalSettings, *, slot: Slot, progress: Progress | None
) -> dict[str, Any]:
    """Runs the fast mode on this process's share of the images; the entry is of all images.

    Args:
        inputs: of the whole evaluation.
        version: of AutoAttack.
        settings: as for `run_fast`.
        slot: unfinished state of this process, in plain values.
        progress: as for `run_fast`.
    """
    rows = distributed.shard(len(inputs))
    result = run_fast(
        inputs if distributed.world_size() == 1 else inputs.subset(rows),  # a copy of ImageNet's would be 3 GB
        version,
        settings,
        slot=_with_tensors(slot),
        progress=progress,
    )
    mode = settings.fast or FastMode()
    broken_by = distributed.gathered(result.broken_by)
    places = range(1, len(result.after) + 1)
    after = [((broken_by < 0) | (broken_by > place)).double().mean().item() for place in places]
    return {
        "implementation": "timm-robust fast mode",
        "mode": "fast",
        "version": version,
        "precision": mode.precision,
        "compile": mode.compile,
        "batch_size": settings.batch_size,
        "processes": distributed.world_size(),
        "after": dict(zip(result.after, after, strict=True)),
        "seconds_by_attack": result.seconds,
        "robust": (broken_by < 0).int().tolist(),
    }


def _with_tensors(slot: Slot) -> Slot:
    """The slot as `run_fast` takes it: tensors where the given one has plain values."""
    write = slot.write
    return Slot(
        _tensors(slot.content) if slot.content else {},
        None if write is None else lambda state: write(_plain(state)),
    )


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    marks = {name: ["".join("01"[mark] for mark in row) for row in state[name].int().tolist()] for name in JOBS}
    return {**state, "broken_by": state["broken_by"].tolist(), **marks}


def _tensors(values: Mapping[str, Any]) -> dict[str, Any]:
    marks = {
        name: torch.tensor([[mark == "1" for mark in row] for row in values[name]], dtype=torch.bool) for name in JOBS
    }
    return {**values, "broken_by": torch.tensor(values["broken_by"]), **marks}
