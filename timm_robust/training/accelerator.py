"""A fresh Accelerator for each run: accelerate owns devices, precision, distributed processes and trackers."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from torch import nn

from timm_robust.errors import MissingExtra, UserError, unknown

PRECISIONS = ("fp32", "bf16", "fp16")

FP16_GRADIENT_SCALE = 2.0**10
"""Scale of the loss in attacks, which keeps input gradients of a batch mean above fp16's smallest number."""


def make_accelerator(precision: str, device: str | None, trackers: list[str], output: Path) -> Accelerator:
    """A fresh Accelerator, whatever an earlier run in this process has set.

    Args:
        precision: one of `PRECISIONS`.
        device: "cpu" to stay off a GPU; None for the best there is.
        trackers: names of accelerate's trackers.
        output: folder for the trackers' files.

    Raises:
        UserError: a precision that the device lacks, or a tracker that is unknown or not installed.
    """
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if precision == "fp16" and on_cpu:
        raise UserError("precision 'fp16' needs a GPU: use bf16 or fp32 on a CPU")
    for name in trackers:
        known = [str(kind) for kind in LoggerType.list() if kind != "all"]
        if name not in known:
            raise unknown("tracker", name, known)
        if name not in map(str, get_available_trackers()):
            if name == "tensorboard":
                raise MissingExtra("tracker 'tensorboard'", name, extra=name)
            raise UserError(f"tracker {name!r} needs its package, which is not installed: pip install {name}")
    # accelerate keeps precision and device for the whole process and refuses to change them; a new run starts afresh
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    GradientState._reset_state()
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=device == "cpu",
        log_with=trackers or None,
        project_dir=str(output),
        # several forwards before one backward: broadcasting buffers at each would overwrite what autograd still needs
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def unpatch(accelerator: Accelerator, network: nn.Module) -> None:
    """Takes back what `prepare` did to a network: with mixed precision it patches `forward`.

    A patched network holds itself, in accelerate's own `unwrap_model` too, and would not be freed with its run.
    """
    accelerator.unwrap_model(network, keep_fp32_wrapper=False).__dict__.pop("forward", None)
