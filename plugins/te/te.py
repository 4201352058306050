"""Temporal ensembling (TE).

Y. Dong, K. Xu, X. Yang, T. Pang, Z. Deng, H. Su, J. Zhu, Exploring Memorization in Adversarial Training, ICLR 2022,
arXiv:2106.01606. Written from a description of the released code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm_robust_plugins.pgd.options import PgdOptions
from timm_robust_plugins.pgd.pgd import PGD
from timm_robust_plugins.trades.options import TradesOptions
from timm_robust_plugins.trades.trades import TRADES, trades_loss
from torch import Tensor

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.pgd import ObjectivePGD
from timm_robust.attacks.steps import gaussian_start
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.errors import UserError
from timm_robust.sample_table import SampleTable

from .options import TeOptions


def ramp(epoch: int, start: float, end: float) -> float:
    """Fraction of the final weight: 0 before `start`, then exp(-5 (1 - u)^2) up to `end`, 1 from there on.

    Args:
        epoch: epoch, counted from 1.
        start, end: epochs; 90 and 150 in the released code.
    """
    if epoch < start:
        return 0.0
    if epoch >= end:
        return 1.0
    return math.exp(-5 * (1 - (epoch - start) / (end - start)) ** 2)


def averaged(table_rows: Tensor, probabilities: Tensor, *, eta: float) -> tuple[Tensor, Tensor]:
    """The averages after another visit, eta t + (1 - eta) p, and the same scaled to sum 1 (bias corrected).

    Args:
        table_rows: [B, K]; zeros for a sample that was not visited yet.
        probabilities: [B, K], of the clean images, detached.
        eta: weight of the old averages.

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
        reduction: `mean_bk` averages over batch and classes; `sum_k_mean_b` sums over classes, K times as much.
    """
    squares = (logits.softmax(1) - ensembled).square()
    return squares.mean() if reduction == "mean_bk" else squares.sum(1).mean()


class EnsemblePGD(ObjectivePGD):
    """PGD that ascends the base's objective plus the weighted distance to ensembled predictions.

    The base is PGD, cross-entropy from a uniform start, or with `beta` TRADES: `beta` times the divergence from the
    clean prediction, from 0.001 of Gaussian noise.

    Args:
        model: network under attack.
        eps, alpha: radius and step size, in units of the [0, 1] range.
        steps: number of steps.
        random_start: start of PGD: at a uniform point of the ball, or at the image.
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
        super().__init__(model, eps, alpha, steps, random_start or beta is not None)
        self.reduction, self.beta = reduction, beta

    def start(self, images: Tensor) -> Tensor:
        return super().start(images) if self.beta is None else gaussian_start(images)

    def objective(
        self, logits: Tensor, labels: Tensor, ensembled: Tensor, weight: float, clean_logits: Tensor
    ) -> Tensor:
        """`ensembled` [B, K], `weight` of the distance to it; `clean_logits` [B, K], for TRADES only."""
        distance = weight * ensemble_distance(logits, ensembled, reduction=self.reduction)
        if self.beta is None:
            return F.cross_entropy(logits, labels) + distance
        return trades_loss(distance, clean_logits, logits, beta=self.beta)


class TE(Defense):
    """PGD or TRADES training with a regulariser; while its weight is 0 bit-identical to that method."""

    options: TeOptions
    norms = ("Linf",)

    def __init__(self, options: TeOptions) -> None:
        super().__init__(options)
        shared = {"steps": options.steps, "step_ratio": options.step_ratio, "attack_bn": options.attack_bn}
        self.base: Defense
        if options.base == "pgd":
            self.base = PGD(PgdOptions(random_start=options.random_start, **shared))
        else:
            self.base = TRADES(TradesOptions(beta=options.beta, **shared))

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
        # rounded, since a fraction times a number of epochs need not be whole in binary
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
