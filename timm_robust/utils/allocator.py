"""Memory kept between steps: glibc returns freed tensors to the kernel, and each step pays to fault them in again."""

from __future__ import annotations

import ctypes
import functools
import os

_SWITCH = "TIMM_ROBUST_KEEP_MEMORY"
"""Environment variable: 0 leaves the allocator as it is."""

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_NEVER = 2**31 - 1
_LARGEST_OLD_THRESHOLD = 2**25
"""Largest mmap threshold that glibc before 2.35 accepts: half of a heap."""
_TOP_PAD = 2**28


def keep_freed_memory(device: str = "cpu") -> bool:
    """Lets glibc keep freed memory for the next step of a run on the CPU, for the rest of the process.

    Does nothing on another device, with another C library, where the user has tuned malloc through the environment, or
    where `TIMM_ROBUST_KEEP_MEMORY=0` is set.

    Args:
        device: device that the tensors live on.

    Returns:
        whether freed memory is kept.
    """
    if not device.startswith("cpu") or os.environ.get(_SWITCH) == "0" or _tuned_by_user():
        return False
    return _set_thresholds()


def _tuned_by_user() -> bool:
    return any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )


@functools.cache
def _set_thresholds() -> bool:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # another C library has no such symbol
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no default library
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _NEVER) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_OLD_THRESHOLD)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_TOP_PAD, _TOP_PAD))
