"""Random draws that leave the process's generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_generators(seed: int | None = None) -> Iterator[None]:
    """Restores afterwards every generator that `torch.manual_seed` sets: the CPU's, and those of all GPUs.

    Args:
        seed: set within; by default the draws go on where they were.
    """
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
