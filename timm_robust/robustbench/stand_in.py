"""The authors' `autoattack`, which is on no package index, emulated for RobustBench with `pyautoattack`.

The released package takes other arguments, returns other values, and hides its log. Torch-free at import.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from timm_robust.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def stand_in() -> dict[str, ModuleType]:
    """`autoattack` and `autoattack.state` as the authors' repository has them, on top of `pyautoattack`."""
    from pyautoattack.state import EvaluationState as Base  # may be missing

    class EvaluationState(Base):  # type: ignore[misc]
        """Flags as numbers, because `benchmark` takes their mean, which torch refuses for bool."""

        @property
        def robust_flags(self) -> Any:
            return None if self._robust_flags is None else self._robust_flags.float()

        @robust_flags.setter
        def robust_flags(self, flags: Any) -> None:
            Base.robust_flags.fset(self, flags)

    package, state = ModuleType("autoattack"), ModuleType("autoattack.state")
    package.__path__ = []
    package.AutoAttack, package.state = AutoAttack, state  # type: ignore[attr-defined]
    state.EvaluationState = EvaluationState  # type: ignore[attr-defined]
    return {"autoattack": package, "autoattack.state": state}


class AutoAttack:
    """`autoattack.AutoAttack` as `benchmark` calls it, on top of `pyautoattack`, which names and returns differently.

    Arguments and their order are those of fra31/auto-attack.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        norm, eps, seed, version, device: as there; without a seed each batch takes it from the clock.
        verbose: print AutoAttack's lines.
        attacks_to_run: for version "custom".
        is_tf_model: refused.
        log_path: file that its lines are appended to.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: tuple[str, ...] | list[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str = "cpu",
        log_path: str | Path | None = None,
    ) -> None:
        from pyautoattack import AutoAttack as Released  # may be missing

        if is_tf_model:
            raise UserError("pyautoattack takes no TensorFlow models: pass a torch module")
        arguments = {"norm": norm, "eps": eps, "seed": seed, "version": version, "device": device}
        self.adversary = Released(model, attacks=list(attacks_to_run) or None, **arguments)
        self.verbose, self.log_path = verbose, log_path
        self.robust: Tensor | None = None

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | None = None,
    ) -> Any:
        """Adversarial images [N, C, H, W], and with `return_labels` their predicted classes [N].

        Raises:
            UserError: a state file that exists: AutoAttack's own resuming never worked.
        """
        if state_path is not None and state_path.exists():
            raise UserError(f"AutoAttack cannot go on from {state_path}: use timm-robust evaluate, which resumes")
        # a view in the DLR loss fails on channels_last strides
        images, targets = x_orig.contiguous(), y_orig.contiguous()
        with _lines(self.verbose, self.log_path):
            adversarial, labels = self.adversary.run_standard_evaluation(
                images, targets, batch_size=bs, state_path=state_path
            )
        self.robust = (labels == y_orig).cpu()
        return (adversarial, labels) if return_labels else adversarial


@contextlib.contextmanager
def _lines(shown: bool, path: str | Path | None) -> Iterator[None]:
    """Sends pyautoattack's log lines, which it hides, to the terminal and to a file, as the authors' package does."""
    logger = logging.getLogger("auto-attack")
    level, spread = logger.level, logger.propagate
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if shown else []
    handlers += [logging.FileHandler(path)] if path is not None else []
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = spread
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
