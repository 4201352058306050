"""Self-guided label refinement (SGLR).

Z. Li, D. Yu, L. Wei, C. Jin, Y. Zhang, S. Chan, Soften to Defend: Towards Adversarial Robustness via Self-Guided Label
Refinement, CVPR 2024, arXiv:2403.09101. Self-adaptive training is the special case of base trades, `adv_weight` 0 and
`reweight`: L. Huang, C. Zhang, H. Zhang, Self-Adaptive Training: beyond Empirical Risk Minimization, NeurIPS 2020.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm_robust_plugins.mart.mart import MART, mart_loss
from timm_robust_plugins.mart.options import MartOptions
from timm_robust_plugins.pgd.options import PgdOptions
from timm_robust_plugins.pgd.pgd import PGD
from timm_robust_plugins.trades.options import TradesOptions
from timm_robust_plugins.trades.trades import TRADES, trades_loss
from torch import Tensor

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.sample_table import SampleTable

from .options import SglrOptions

BETAS = {"pgd": 0.0, "trades": 6.0, "mart": 5.0}

MANY = 0.05
"""Fraction of relabelled samples above which the user is warned."""


def base_method(options: SglrOptions, beta: float) -> Defense:
    """The method whose labels are refined, with these options."""
    shared = {"steps": options.steps, "step_ratio": options.step_ratio, "attack_bn": options.attack_bn}
    if options.base == "pgd":
        return PGD(PgdOptions(random_start=options.random_start, **shared))
    if options.base == "trades":
        return TRADES(TradesOptions(beta=beta, **shared))
    return MART(MartOptions(beta=beta, **shared))


def or_given(table_rows: Tensor, targets: Tensor) -> Tensor:
    """The rows, or the one-hot given label of a sample that has no row yet.

    Args:
        table_rows: [B, K]; zeros for a sample that was not visited yet.
        targets: int64 [B].
    """
    given = F.one_hot(targets, table_rows.shape[1]).to(table_rows)
    return torch.where(table_rows.sum(1, keepdim=True) > 0, table_rows, given)


def refined(
    table_rows: Tensor,
    adversarial_probabilities: Tensor,
    clean_probabilities: Tensor | None,
    *,
    alpha: float,
    adv_weight: float,
) -> Tensor:
    """Rows after another visit: alpha T + (1 - alpha) (adv_weight p' + (1 - adv_weight) p), as in the released code.

    Args:
        table_rows: [B, K], distributions.
        adversarial_probabilities: [B, K], detached.
        clean_probabilities: [B, K], detached; may be None where `adv_weight` is 1.
        alpha: weight of the old rows.
        adv_weight: weight of the adversarial prediction; the clean one has the rest.

    Returns:
        [B, K], distributions.
    """
    predicted = adversarial_probabilities
    if clean_probabilities is not None:
        predicted = adv_weight * adversarial_probabilities + (1 - adv_weight) * clean_probabilities
    return alpha * table_rows + (1 - alpha) * predicted


def interpolated(refined_rows: Tensor, targets: Tensor, *, r: float) -> Tensor:
    """The target r T + (1 - r) e_y of the paper; r = 1 is the released code.

    Args:
        refined_rows: [B, K].
        targets: int64 [B], the given labels.
        r: weight of the refined label.
    """
    return r * refined_rows + (1 - r) * F.one_hot(targets, refined_rows.shape[1]).to(refined_rows)


def smoothed(labels: Tensor, *, amount: float) -> Tensor:
    """Label smoothing for soft labels; one-hot ones get s / (K - 1) on each other class.

    Args:
        labels: [B, K], distributions.
        amount: mass s that goes to the other classes, the recipe's `label_smoothing`.
    """
    classes = labels.shape[1]
    return (1 - amount * classes / (classes - 1)) * labels + amount / (classes - 1)


def confidence_weights(rows: Tensor) -> Tensor:
    """The largest entry of each label, scaled to mean 1 over the batch (self-adaptive training).

    Args:
        rows: [B, K].

    Returns:
        [B].
    """
    largest = rows.amax(1)
    return largest / largest.mean()


def soft_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Batch mean of the cross-entropy with soft labels, optionally weighted.

    Args:
        logits, labels: [B, K].
        weights: [B], with mean 1.
    """
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()


class SGLR(Defense):
    """A base method with refined labels: its attack and, until refinement begins, its loss."""

    options: SglrOptions

    def __init__(self, options: SglrOptions) -> None:
        super().__init__(options)
        self.beta = BETAS[options.base] if options.beta is None else options.beta
        self.base = base_method(options, self.beta)
        self.norms = self.base.norms

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        self.base.setup(run)
        self.table = SampleTable(run, "sglr: labels", (run.num_classes,), place=self.options.table_place)
        self.refining = False

    def on_epoch_start(self, epoch: int) -> None:
        # the released code counts epochs from 1; rounded, since a fraction times a number need not be whole in binary
        begun = epoch + 1 >= round(self.options.start * self.run.epochs, 6)
        # with alpha 1 no label ever changes: without the extra forward the run is bit-identical to the base's
        self.refining = begun and self.options.alpha < 1
        self.visits, self.relabelled = 0, torch.zeros((), device=self.run.device)

    def perturb(self, batch: Batch) -> Perturbed:
        return self.base.perturb(batch)

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        if not self.refining:
            return self.base.loss(batch, perturbed)
        options, targets = self.options, batch.targets
        clean, adversarial = self._logits(batch, perturbed)
        rows = refined(
            or_given(self.table[batch.index], targets),
            adversarial.detach().softmax(1),
            None if clean is None else clean.detach().softmax(1),
            alpha=options.alpha,
            adv_weight=options.adv_weight,
        )
        labels = smoothed(interpolated(rows, targets, r=options.r), amount=self.run.recipe.label_smoothing)
        weights = confidence_weights(rows) if options.reweight else None
        if options.base == "trades":
            loss = trades_loss(soft_cross_entropy(clean, labels, weights), clean, adversarial, beta=self.beta)
        else:
            loss = soft_cross_entropy(adversarial, labels, weights)
        if options.base == "mart":
            loss = mart_loss(loss, clean, adversarial, targets, beta=self.beta)
        relabelled = (rows.argmax(1) != targets).float().mean()
        return {"loss": loss, "logits": adversarial, "relabelled": relabelled, "rows": rows}

    def _logits(self, batch: Batch, perturbed: Perturbed) -> tuple[Tensor | None, Tensor]:
        """Clean and adversarial logits in float32; the clean ones of base pgd carry no gradient."""
        model, options = self.run.model, self.options
        if options.base != "pgd":
            clean = model(batch.images).float()
            return clean, model(perturbed.images).float()
        adversarial = model(perturbed.images).float()
        if options.adv_weight == 1:
            return None, adversarial
        # after the other forward, or autocast would cache weights cast without a gradient for it
        with torch.no_grad(), attack_mode(self.run.unwrapped_model) if options.clean_bn == "eval" else nullcontext():
            return self.run.unwrapped_model(batch.images).float(), adversarial

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        if self.refining:
            self.table[batch.index] = output["rows"]
            self.visits += len(batch)
            self.relabelled += output["relabelled"] * len(batch)

    def on_epoch_end(self, epoch: int) -> None:
        self.table.merge()
        share = self.relabelled.item() / max(1, self.visits)
        if share > MANY:
            self.run.say(
                f"sglr: after epoch {epoch + 1} the top class of {share:.1%} of the labels is not the given one; "
                "an r below 1 keeps some of the given label"
            )

    def soft_labels(self, index: Tensor, targets: Tensor) -> Tensor:
        return interpolated(or_given(self.table[index], targets), targets, r=self.options.r)

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.load_state_dict(state["labels"])
