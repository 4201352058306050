"""Random draws that leave the process's generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def preserve_rng_state(seed: int | None = None) -> Iterator[None]:
    """Restores afterwards the generators that attacks draw from: torch's of the CPU and of all GPUs, and NumPy's.

    Args:
        seed: set within; by default the draws go on where they were.
    """
    import torch  # takes seconds to load, and listings import this file

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    drawn = np.random.get_state()  # of Pixle and OnePixel
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(drawn)
