"""Temporal ensembling (TE).

Y. Dong, K. Xu, X. Yang, T. Pang, Z. Deng, H. Su, J. Zhu, Exploring Memorization in Adversarial Training, ICLR 2022,
arXiv:2106.01606. Written from a description of the released code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm_robust_plugins.pgd.pgd import PGD
from timm_robust_plugins.trades.trades import TRADES, trades_loss
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.steps import signed_step
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.errors import UserError
from timm_robust.sample_table import SampleTable

from .options import TeOptions


def ramp(epoch: int, start: float, end: float) -> float:
    """Share of the full weight: 0 before `start`, exp(-5 (1 - u)^2) on the way to `end`, 1 from there on.

    Args:
        epoch: counted from 1.
        start, end: epochs; 90 and 150 in the released code.
    """
    if epoch < start:
        return 0.0
    if epoch >= end:
        return 1.0
    return math.exp(-5 * (1 - (epoch - start) / (end - start)) ** 2)


def averaged(table_rows: Tensor, probabilities: Tensor, *, eta: float) -> tuple[Tensor, Tensor]:
    """The averages after one more visit, eta t + (1 - eta) p, and the same scaled to sum 1 (bias corrected).

    Args:
        table_rows: [B, K]; zeros for a sample that was never visited.
        probabilities: [B, K], of the clean images, detached.
        eta: share that the old averages keep.

    Returns:
        (averages [B, K], distributions [B, K]).
    """
    averages = eta * table_rows + (1 - eta) * probabilities
    return averages, averages / averages.sum(1, keepdim=True)


def ensemble_distance(logits: Tensor, ensembled: Tensor, *, reduction: str) -> Tensor:
    """Squared distance between a prediction and the ensembled one, a scalar.

    Args:
        logits: [B, K].
        ensembled: [B, K], distributions, detached.
        reduction: `mean_bk` over batch and classes, `sum_k_mean_b` the sum over classes, which is K times as much.
    """
    squares = (logits.softmax(1) - ensembled).square()
    return squares.mean() if reduction == "mean_bk" else squares.sum(1).mean()


class EnsemblePGD(Attack):
    """PGD that ascends the base's objective plus the weighted distance to ensembled predictions.

    The base is PGD, cross-entropy from a uniform start, or with `beta` TRADES: that many times the divergence from the
    clean prediction, starting 0.001 of Gaussian noise away.

    Args:
        model: the network under attack.
        eps, alpha: radius and step, in units of the [0, 1] range.
        steps: number of steps.
        random_start: whether PGD starts at a uniform point of the ball, or at the image.
        reduction: see `ensemble_distance`.
        beta: weight of the divergence; None for PGD.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        eps: float,
        alpha: float,
        steps: int,
        random_start: bool,
        reduction: str,
        beta: float | None,
    ) -> None:
        super().__init__("EnsemblePGD", model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start
        self.reduction, self.beta = reduction, beta

    def forward(self, images: Tensor, labels: Tensor, ensembled: Tensor, weight: float, clean_logits: Tensor) -> Tensor:
        """`ensembled` [B, K], `weight` of the distance to it; `clean_logits` [B, K], which only TRADES uses."""
        adversarial = images
        if self.beta is not None:
            adversarial = (images + 0.001 * torch.randn_like(images)).clamp(0, 1)
        elif self.random_start:
            adversarial = (images + torch.empty_like(images).uniform_(-self.eps, self.eps)).clamp(0, 1)
        for _ in range(self.steps):
            adversarial = adversarial.detach().requires_grad_(True)
            logits = self.get_logits(adversarial)
            objective = weight * ensemble_distance(logits, ensembled, reduction=self.reduction)
            if self.beta is None:
                objective = F.cross_entropy(logits, labels) + objective
            else:
                objective = trades_loss(objective, clean_logits, logits, beta=self.beta)
            (gradient,) = torch.autograd.grad(objective, adversarial)
            adversarial = signed_step(adversarial, gradient, images, alpha=self.alpha, eps=self.eps)
        return adversarial


class TE(Defense):
    """PGD or TRADES training; while the weight is 0 that method itself, to the bit."""

    options: TeOptions
    norms = ("Linf",)

    def __init__(self, options: TeOptions) -> None:
        super().__init__(options)
        self.base = {"pgd": PGD, "trades": TRADES}[options.base](options)

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        options = self.options
        if options.end < options.start:
            raise UserError(f"option 'end' of method 'te' is {options.end:g}: expected at least start")
        self.base.setup(run)
        self.table = SampleTable(run, "te: averaged predictions", (run.num_classes,), place=options.table_place)
        self.weight = 0.0

    def on_epoch_start(self, epoch: int) -> None:
        options, epochs = self.options, self.run.epochs
        # rounded, since a share times a number of epochs need not be whole in binary
        start, end = round(options.start * epochs, 6), round(options.end * epochs, 6)
        self.weight = options.weight * ramp(epoch + 1, start, end)

    def perturb(self, batch: Batch) -> Perturbed:
        if not self.weight:
            return self.base.perturb(batch)
        options = self.options
        with torch.no_grad(), attack_mode(self.run.unwrapped_model, "eval"):
            clean_logits = self.run.attacker.view(batch.images)
        averages, ensembled = averaged(self.table[batch.index], clean_logits.softmax(1), eta=options.eta)
        images = self.attack(
            batch.images,
            batch.targets,
            EnsemblePGD,
            ensembled,
            self.weight,
            clean_logits,
            reduction=options.reduction,
            beta=options.beta if options.base == "trades" else None,
            **self.pgd_settings(),
        )
        return Perturbed(images, {"averages": averages, "ensembled": ensembled})

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        if not self.weight:
            return self.base.loss(batch, perturbed)
        options = self.options
        if options.base == "pgd":
            logits = regularised = self.run.model(perturbed.images)
            loss = self.cross_entropy(logits, batch.targets)
        else:
            clean_logits = self.run.model(batch.images)
            logits = self.run.model(perturbed.images)
            loss = trades_loss(self.cross_entropy(clean_logits, batch.targets), clean_logits, logits, beta=options.beta)
            regularised = clean_logits if options.te_target == "clean" else logits
        distance = ensemble_distance(regularised.float(), perturbed.extras["ensembled"], reduction=options.reduction)
        return {"loss": loss + self.weight * distance, "logits": logits, "distance": distance.detach()}

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        if self.weight:
            self.table[batch.index] = perturbed.extras["averages"]

    def on_epoch_end(self, epoch: int) -> None:
        self.table.merge()

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.load_state_dict(state["averages"])
