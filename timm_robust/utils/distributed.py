"""Processes of one evaluation, as `torchrun` or `accelerate launch` start them, and the images that each evaluates."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def own_device() -> str:
    """The best device for this process."""
    if not torch.cuda.is_available():
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{local % torch.cuda.device_count()}" if world_size() > 1 else "cuda"


def shard(n: int) -> Tensor:
    """Indices evaluated by this process, int64: every `world_size`-th image, so that hard and easy images are spread
    evenly."""
    return torch.arange(rank(), n, world_size())


def gathered(values: Tensor) -> Tensor:
    """Results of all processes for their `shard`, in the order of the data, on every process."""
    if world_size() == 1:
        return values
    from accelerate.utils import gather_object  # seconds, for several processes only

    _group()
    parts = gather_object([values.cpu()])
    whole = torch.empty(sum(map(len, parts)), dtype=values.dtype)
    for place, part in enumerate(parts):
        whole[place :: world_size()] = part
    return whole


def barrier() -> None:
    """Returns once all processes have called it."""
    if world_size() > 1:
        _group().wait_for_everyone()


def _group() -> PartialState:
    """The process group; on the CPU, since only verdicts travel, and patient, since shards end hours apart."""
    from accelerate import PartialState  # as above

    return PartialState(cpu=True, timeout=timedelta(days=30))
