"""Versions and hardware that a record was made with. Torch-free until the hardware is asked for."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

RECORDED = (
    "timm-robust",
    "torch",
    "timm",
    "torchattacks",
    "pyautoattack",
    "autoattack",
    "robustbench",
    "accelerate",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware() -> str:
    """One line: number and name of the GPUs, or the processor and its cores."""
    import torch  # listings do without

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU, {cores} cores, {_processor()}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
