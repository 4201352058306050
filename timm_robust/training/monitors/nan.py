"""Stops a run whose numbers are lost, and says what is kept and what to try."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from timm_robust.errors import RunFailed

if TYPE_CHECKING:
    from timm_robust.training.engine import Engine


def require_finite_loss(engine: Engine, total: float, step: int) -> None:
    """Stops on a loss that is not finite.

    Args:
        total: the epoch's summed loss so far.
        step: of the epoch, from 0.

    Raises:
        RunFailed: it is not.
    """
    if not math.isfinite(total):
        raise RunFailed(
            f"the loss is {total} in epoch {engine.epoch + 1}, batch {step + 1} of {engine.steps}: {_kept(engine)}; "
            "try a smaller --lr, --set clip_grad=1, or --precision fp32"
        )


def require_finite_weights(engine: Engine) -> None:
    """Weights can be lost while the loss is finite: bfloat16 convolutions on maps of 2x2 do that on some CPUs.

    Raises:
        RunFailed: one is not finite.
    """
    for name, value in engine.unwrapped_model.named_parameters():
        if not value.isfinite().all():
            raise RunFailed(
                f"weight {name!r} is no longer finite after epoch {engine.epoch + 1}: {_kept(engine)}; "
                "try --precision fp32, a smaller --lr, or a larger --image-size"
            )


def _kept(engine: Engine) -> str:
    return f"{engine.config.output}/last holds epoch {engine.epoch}" if engine.epoch else "no epoch was finished before"
