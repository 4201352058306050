"""An evaluation in several processes, as `torchrun` or `accelerate launch` start them: who takes which images."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def own_device() -> str:
    """The best device for this process."""
    if not torch.cuda.is_available():
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{local % torch.cuda.device_count()}" if count() > 1 else "cuda"


def shard(n: int) -> Tensor:
    """Rows of this process, int64: every so-manieth, so that hard and easy images are spread."""
    return torch.arange(rank(), n, count())


def merged(values: Tensor) -> Tensor:
    """What all processes found for their `shard`, in the order of the data, on every process."""
    if count() == 1:
        return values
    from accelerate.utils import gather_object

    _group()
    parts = gather_object([values.cpu()])
    whole = torch.empty(sum(map(len, parts)), dtype=values.dtype)
    for place, part in enumerate(parts):
        whole[place :: count()] = part
    return whole


def wait() -> None:
    """Returns when all processes are here."""
    if count() > 1:
        _group().wait_for_everyone()


def _group() -> PartialState:
    """The process group; on the CPU, since only verdicts travel, and patient, since shards end hours apart."""
    from accelerate import PartialState

    return PartialState(cpu=True, timeout=timedelta(days=30))
