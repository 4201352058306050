"""Free adversarial training.

A. Shafahi, M. Najibi, A. Ghiasi, Z. Xu, J. Dickerson, C. Studer, L. S. Davis, G. Taylor, T. Goldstein, Adversarial
Training for Free!, NeurIPS 2019, arXiv:1904.12843.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext

from .options import FreeOptions


def free_update(delta: Tensor, gradient: Tensor, images: Tensor, *, step: float, eps: float) -> Tensor:
    """The perturbation after one backward pass: a signed step, projected into the ball.

    Args:
        delta: [B, C, H, W], in the ball.
        gradient: [B, C, H, W], of the loss at clip(images + delta, 0, 1); a clipped pixel has none.
        images: [B, C, H, W] in [0, 1].
        step, eps: step size and radius, in units of the [0, 1] range.
    """
    raw = images + delta
    passed = gradient.sign() * ((raw >= 0) & (raw <= 1))
    return (delta + step * passed).clamp(-eps, eps)


class Free(Defense):
    """One perturbation shared by all batches, never reset; its gradient comes from the update's own backward pass.

    `perturb` returns a leaf that requires grad, so the attack costs no pass of its own; `replays` makes the engine take
    that many steps on each batch.
    """

    options: FreeOptions
    norms = ("Linf",)

    def __init__(self, options: FreeOptions) -> None:
        super().__init__(options)
        self.replays = options.replays

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        shape = (run.recipe.batch_size, run.in_chans, run.image_size, run.image_size)
        self.delta = torch.zeros(shape, device=run.device)

    def perturb(self, batch: Batch) -> Perturbed:
        rows = self.delta[: len(batch)]  # a smaller last batch uses the first rows only
        return Perturbed((batch.images + rows).clamp(0, 1).requires_grad_(True))

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        gradient, eps, rows = perturbed.images.grad, self.run.threat.eps, self.delta[: len(batch)]
        if gradient is not None:
            rows.copy_(free_update(rows, gradient, batch.images, step=self.times_eps(self.options.step_ratio), eps=eps))

    def on_epoch_end(self, epoch: int) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.delta, 0)  # a resumed run starts from the first process's

    def state_dict(self) -> dict[str, Any]:
        return {"delta": self.delta.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.delta.copy_(state["delta"])
