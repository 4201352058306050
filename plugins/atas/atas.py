"""ATAS.

Z. Huang, Y. Fan, C. Liu, W. Zhang, Y. Zhang, M. Salzmann, S. Suesstrunk, J. Wang, Fast Adversarial Training with
Adaptive Step Size, IEEE Transactions on Image Processing 32, 2023, arXiv:2206.02417. Written from the released code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.steps import signed_step
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.errors import UserError
from timm_robust.sample_table import SampleTable, enlarge, put_window, reduce, take_window
from timm_robust.threat import SMALL_IMAGE

from .options import AtasOptions


def adaptive_step(average: Tensor, *, soft_norm: float, numerator: float, low: float, high: float) -> Tensor:
    """Step size of each sample: numerator / (1 + sqrt(average) / soft_norm), inside [low, high].

    Args:
        average: [B], moving averages of squared norms of the gradient of each sample's own loss.
        soft_norm: gradient norm at which the step is half of `numerator`.
        numerator, low, high: in units of the [0, 1] range.
    """
    return (numerator / (1 + average.sqrt() / soft_norm)).clamp(low, high)


class CarriedStep(Attack):
    """One signed step from given perturbations, with a step size for each sample by its gradient norm.

    Stores the updated averages as `average`.

    Args:
        model: network under attack.
        eps: radius, in units of the [0, 1] range.
        decay: decay of the averages.
        soft_norm, numerator, low, high: see `adaptive_step`.
        gradient_scale: factor on the model's input gradients, see `Attacker`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        eps: float,
        decay: float,
        soft_norm: float,
        numerator: float,
        low: float,
        high: float,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__("CarriedStep", model)
        self.eps, self.decay, self.gradient_scale = eps, decay, gradient_scale
        self.rule = {"soft_norm": soft_norm, "numerator": numerator, "low": low, "high": high}
        self.average: Tensor | None = None
        self.step: Tensor | None = None

    def forward(self, images: Tensor, labels: Tensor, carried: Tensor, average: Tensor, adaptive: bool) -> Tensor:
        """`carried` [B, C, H, W], `average` [B]; unless `adaptive` the step is eps and the averages are unchanged."""
        carried = carried.clamp(-self.eps, self.eps)  # drawn in the full ball, though eps may still warm up
        start = (images + carried).clamp(0, 1).requires_grad_(True)
        # a sum and not a mean, so that each sample's gradient does not depend on the batch size
        loss = torch.nn.functional.cross_entropy(self.get_logits(start), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, start)
        if adaptive:
            unscaled = gradient.flatten(1).float() / self.gradient_scale
            # float16 may overflow; the average must not keep that
            squared = unscaled.square().sum(1).nan_to_num(posinf=1e9)
            average = self.decay * average + (1 - self.decay) * squared
            self.step = adaptive_step(average, **self.rule)
        else:
            self.step = torch.full_like(average, self.eps)
        self.average = average
        return signed_step(start, gradient, images, alpha=self.step.view(-1, 1, 1, 1), eps=self.eps)


class ATAS(Defense):
    """Stores each sample's perturbation, in the frame before cropping, and the average of its squared gradient norm."""

    options: AtasOptions
    norms = ("Linf",)

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        options, small = self.options, run.image_size <= SMALL_IMAGE
        if run.frame_size is None:
            raise UserError(
                "method 'atas' carries perturbations through crop and flip, which augmentation "
                f"{run.recipe.augment!r} does not allow: pass --set augment=crop-flip"
            )
        self.frame = run.frame_size
        largest = options.max_step if options.max_step is not None else (14 if small else 8)
        if largest < options.min_step:
            raise UserError(f"option 'max_step' of method 'atas' is {largest:g}: expected at least min_step")
        self.rule = {
            "soft_norm": options.soft_norm if options.soft_norm is not None else (1.28 if small else 12.8),
            "numerator": options.numerator / 255,
            "low": options.min_step / 255,
            "high": largest / 255,
        }
        side = options.stored_size or (self.frame if small else 32)
        self.stored = SampleTable(
            run,
            "atas: perturbations",
            (run.in_chans, side, side),
            getattr(torch, options.table_dtype),
            options.table_place,
        )
        self.averages = SampleTable(run, "atas: gradient norms", (), torch.float32, options.table_place)
        self.stored.fill_uniform(run.threat.eps, run.seed)
        self.adaptive = False

    def on_epoch_start(self, epoch: int) -> None:
        number = epoch + 1  # the released code counts from 1
        self.adaptive = number > self.options.warmup_epochs
        if number % self.options.reset_epochs == 0 and number != self.run.epochs:
            self.stored.fill_uniform(self.run.threat.eps, self.run.seed + number)

    def perturb(self, batch: Batch) -> Perturbed:
        frames = enlarge(self.stored[batch.index], self.frame)
        carried = take_window(frames, batch.view, self.run.image_size)
        attack = self.run.attacker.build(CarriedStep, decay=self.options.decay, **self.rule)
        images = self.attack(
            batch.images,
            batch.targets,
            attack,
            carried,
            self.averages[batch.index],
            self.adaptive,
            bn=self.options.attack_bn,
        )
        return Perturbed(images, {"frames": frames, "average": attack.average, "step": attack.step.mean()})

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        logits = self.run.model(perturbed.images)
        return {
            "loss": self.cross_entropy(logits, batch.targets),
            "logits": logits,
            "step_size": perturbed.extras["step"],
        }

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        self.averages[batch.index] = perturbed.extras["average"]
        if self.options.carry:
            found = perturbed.images - batch.images
            frames = put_window(perturbed.extras["frames"], batch.view, found)
            self.stored[batch.index] = reduce(frames, self.stored.values.shape[-1])

    def on_epoch_end(self, epoch: int) -> None:
        self.stored.merge()
        self.averages.merge()

    def state_dict(self) -> dict[str, Any]:
        return {"stored": self.stored.state_dict(), "averages": self.averages.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stored.load_state_dict(state["stored"])
        self.averages.load_state_dict(state["averages"])
