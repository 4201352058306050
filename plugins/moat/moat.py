"""MOAT: multi-stage optimization based adversarial training.

X. Wang, C. Song, L. Wang, K. He, Multi-stage Optimization based Adversarial Training, arXiv:2106.15357. Only the
abstract was available: training cycles through benign, single-step and multi-step examples. Here the stages are an
option.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext

from .options import MoatOptions
from .stages import Kind, mean_cost, parse_stages, period, stage_at


class MOAT(Defense):
    """Trains each batch on the kind of examples, or mixture of kinds, of the current stage."""

    options: MoatOptions
    norms = ("Linf",)

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        self.stages = parse_stages(self.options.stages)
        self.iteration = self.epoch = 0
        text = ", ".join(f"{stage.length} x {' + '.join(kind.name for kind in stage.kinds)}" for stage in self.stages)
        run.say(
            f"moat: {text} {self.options.unit}s in turn, {mean_cost(self.stages):.2f} forward-backward passes per image"
        )

    def on_epoch_start(self, epoch: int) -> None:
        self.epoch = epoch

    def may_be_best(self, epoch: int) -> bool:
        """With stages of epochs only at the end of a period, or the choice would depend on the stage."""
        at_end = (epoch + 1) % period(self.stages) == 0 or epoch + 1 == self.run.epochs
        return self.options.unit == "iteration" or at_end

    def perturb(self, batch: Batch) -> Perturbed:
        position = self.iteration if self.options.unit == "iteration" else self.epoch
        stage = stage_at(self.stages, position)
        parts = [(kind.weight, self._examples(kind, batch)) for kind in stage.kinds]
        return Perturbed(parts[-1][1], {"parts": parts})

    def _examples(self, kind: Kind, batch: Batch) -> Tensor:
        options = self.options
        if kind.name == "benign":
            return batch.images
        if kind.name == "fgsm":
            return self.attack(batch.images, batch.targets, "fgsm", bn=options.attack_bn)
        if kind.name == "fgsm-rs":
            step = self.times_eps(options.single_step_ratio)
            return self.attack(batch.images, batch.targets, "ffgsm", bn=options.attack_bn, alpha=step)
        step = self.times_eps(options.multi_step_ratio)
        return self.attack(batch.images, batch.targets, "pgd", bn=options.attack_bn, steps=kind.steps, alpha=step)

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        parts = [(weight, self.run.model(images)) for weight, images in perturbed.extras["parts"]]
        losses = [weight * self.cross_entropy(logits, batch.targets) for weight, logits in parts]
        return {"loss": torch.stack(losses).sum(), "logits": parts[-1][1]}

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        self.iteration += 1

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
