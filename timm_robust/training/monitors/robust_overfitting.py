"""Robust overfitting: memorisation, measured after each epoch, and early stopping once it has set in.

Late in training, mostly after the learning rate drops, robust accuracy on held-out images declines for good while on
training images it still rises (Rice, Wong and Kolter, ICML 2020): the network memorises labels that it cannot learn
(Dong et al., ICLR 2022). Measuring leaves training alone: every weight, mode, statistic and random draw.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.attacker import Attacker
from timm_robust.data import Batch, Split, make_eval_loader, some
from timm_robust.recipes.recipe import Recipe
from timm_robust.runs.history import ROBUST_OVERFITTING
from timm_robust.training.monitors.base import Callback, Step, StopTraining
from timm_robust.training.monitors.catastrophic_overfitting import LEARNED
from timm_robust.utils.random import preserve_rng_state

BINS = 15
"""Number of confidence bins of equal width, for the calibration error."""

ERRORS = 2
"""Number of standard errors of the check that robust accuracy has to be below its best to count as fallen."""


def gradient_norms(predicted: Tensor, labels: Tensor) -> Tensor:
    """Norm of each sample's cross-entropy gradient with respect to the logits, ||p - q||, in [0, sqrt(2)].

    The gradient of a last linear layer's weights and bias has this norm times sqrt(||h||^2 + 1), with features h.

    Args:
        predicted, labels: probabilities [N, K], rows sum to 1.
    """
    return (predicted - labels).norm(dim=1)


def entropies(labels: Tensor) -> Tensor:
    """Entropy of each row of [N, K], in nats; 0 for a one-hot label, log K for a uniform one."""
    return torch.special.entr(labels).sum(1)


def calibration_error(predicted: Tensor, targets: Tensor) -> float:
    """Expected calibration error: mean distance of confidence from accuracy over bins of confidence.

    Args:
        predicted: probabilities [N, K], rows sum to 1.
        targets: int64 [N].
    """
    confidence, classes = predicted.max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    missing = (classes == targets).double() - confidence.double()
    off = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, missing)
    return off.abs().sum().item() / len(targets)


def fallen(rows: Sequence[Mapping[str, Any]], n: int, learned: float) -> tuple[int, Mapping[str, Any] | None]:
    """Number of consecutive epochs, up to the last, with validation robust accuracy below its best by more than chance.

    Args:
        rows: rows of metrics.jsonl.
        n: number of validation images in the check.
        learned: clean accuracy above which robust accuracy is meaningful; a constant prediction withstands every
            attack.

    Returns:
        that number, and the row of the best epoch; 0 and None if nothing has been learned yet.
    """
    best, count = None, 0
    for row in rows:
        if row["val_clean"] > learned and (best is None or row["val_robust"] > best["val_robust"]):
            best = row
        highest = best["val_robust"] if best else 0.0
        margin = ERRORS * (highest * (1 - highest) / n) ** 0.5
        count = count + 1 if highest - row["val_robust"] > margin else 0
    return count, best


@dataclass(frozen=True)
class Predictions:
    """Predictions for clean and attacked images, on the CPU in double precision.

    Attributes:
        index: int64 [N], positions of the images that could be read.
        targets: int64 [N], their classes.
        clean, adversarial: probabilities [N, K].
    """

    index: Tensor
    targets: Tensor
    clean: Tensor
    adversarial: Tensor

    @property
    def right(self) -> Tensor:
        """Whether each is classified correctly, clean and after the attack, bool [N]; as `robust_correct` counts."""
        return (self.clean.argmax(1) == self.targets) & (self.adversarial.argmax(1) == self.targets)

    def accuracies(self, of: str) -> dict[str, float | None]:
        """Clean and robust accuracy, and calibration error under attack, with `of` as prefix of their names."""
        return {
            f"{of}_clean": _mean(self.clean.argmax(1) == self.targets),
            f"{of}_robust": _mean(self.right),
            f"{of}_ece": calibration_error(self.adversarial, self.targets),
        }


@torch.no_grad()
def predict(attacker: Attacker, batches: Iterable[Batch], seed: int) -> Predictions:
    """Predictions for images and for PGD-10 on all of them, misclassified ones too; in eval mode, draws from `seed`."""
    model, parts = attacker.model, []
    alpha = attacker.threat.eps / 4
    with preserve_rng_state(seed), attack_mode(model):
        for batch in batches:
            adversarial = attacker(batch.images, batch.targets, "pgd", steps=10, alpha=alpha, random_start=True)
            both = [attacker.view(images).cpu().double().softmax(1) for images in (batch.images, adversarial)]
            parts.append((batch.index.cpu(), batch.targets.cpu(), *both))
    return Predictions(*map(torch.cat, zip(*parts, strict=True)))


class RobustOverfittingMonitor(Callback):
    """Measures memorisation, and stops a run whose robust accuracy has fallen for good.

    Test images are measured and never used: neither best/ nor the end of a run depends on them.

    Args:
        recipe: number of images to measure, and number of epochs below the best after which a run stops.

    Attributes:
        on: whether anything is measured.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.on = self.wants_gradient_norm = recipe.diagnose > 0
        self._right: Tensor | None = None  # of the training images, under attack, by the best epoch so far
        self._norms: Tensor | None = None  # sum and number in this epoch, on the device

    @cached_property
    def _train(self) -> tuple[Split, np.ndarray]:
        """The training images, and their positions in the split; the same throughout a run."""
        return some(self.context.data.train, self.recipe.diagnose, self.context.run.seed)

    def on_step(self, step: Step) -> None:
        if self.on and step.gradient_norm is not None:
            self.add(step.gradient_norm)

    def add(self, norm: Tensor) -> None:
        """Adds the norm of an optimizer step's gradient; those that overflowed are left out."""
        norms = torch.stack([norm.nan_to_num(0.0, 0.0, 0.0), norm.isfinite().to(norm.dtype)])
        self._norms = norms if self._norms is None else self._norms + norms

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        """Measures, and stops the run when the last epochs call for it.

        Raises:
            StopTraining: robust accuracy has been below its best for as many epochs as the recipe allows.
        """
        if self.on:
            started = time.perf_counter()
            with self.context.counter.paused():
                found = self._measure(best=row["best"])
            row["diagnosis"] = {name: None if value is None else round(value, 6) for name, value in found.items()}
            row["diagnosis_seconds"] = round(time.perf_counter() - started, 2)
        if self.recipe.stop_on_overfitting and self.context.defense.adversarial:
            self._judge([*self.context.state.rows, row])

    def _measure(self, best: bool) -> dict[str, float | None]:
        context, (part, positions) = self.context, self._train
        train, test = (self._predict(split) for split in (part, context.data.test))
        index = torch.from_numpy(positions)[train.index]
        on_device = [tensor.to(context.run.device) for tensor in (index, train.targets)]
        labels = context.defense.soft_labels(*on_device).cpu().double()
        g = gradient_norms(train.adversarial, labels)
        if best:
            self._right = torch.zeros(len(part), dtype=torch.bool).index_copy_(0, train.index, train.right)
        total, number = (0.0, 0.0) if self._norms is None else self._norms.tolist()
        self._norms = None
        found: dict[str, float | None] = {
            **train.accuracies("train"),
            **test.accuracies("test"),
            "g": _mean(g),
            "gradient_norm": total / number if number else None,
            "label_entropy": _mean(entropies(labels)),
            "relabelled": _mean(labels.argmax(1) != train.targets),
        }
        if self._right is not None:  # None while a method's first epochs cannot be the best
            right = self._right[train.index]
            found |= {"g_right": _mean(g[right]), "g_wrong": _mean(g[~right]), "wrong": _mean(~right)}
            found["g_wrong_share"] = g[~right].sum().item() / g.sum().item() if g.any() else None
        if part.true_labels is not None:
            true, answers = torch.from_numpy(part.true_labels)[train.index], train.adversarial.argmax(1)
            noisy = train.targets != true
            found["noisy_images"] = int(noisy.sum())
            found["noisy_given"] = _mean((answers == train.targets)[noisy])
            found["noisy_true"] = _mean((answers == true)[noisy])
            found["noisy_g"] = _mean(g[noisy])
        return found

    def _predict(self, split: Split) -> Predictions:
        batch_size = max(self.recipe.batch_size, 250)
        n = min(self.recipe.diagnose, len(split))
        batches = make_eval_loader(split, batch_size=batch_size, device=self.context.run.device, n_examples=n)
        return predict(self.context.checker, batches, self.context.run.seed)

    def _judge(self, rows: list[dict[str, Any]]) -> None:
        """Stops the run, if the last of its rows call for it."""
        context, patience, row = self.context, self.recipe.stop_on_overfitting, rows[-1]
        checked = context.checked_labels
        most_frequent = checked.bincount().max().item() / len(checked)
        ended = [one for one in rows if context.defense.may_be_best(one["epoch"] - 1)]  # none in the middle of a cycle
        count, best = fallen(ended, len(checked), most_frequent + LEARNED)
        count = context.agree(count)
        if count < patience or best is None:
            return
        event = {
            "kind": ROBUST_OVERFITTING,
            "epoch": row["epoch"],
            "seen_on": "validation",
            "robust": round(row["val_robust"], 4),
            "best": round(best["val_robust"], 4),
            "best_epoch": best["epoch"],
            "answer": "stop",
        }
        reason = (
            f"robust overfitting: robust accuracy on validation images was {best['val_robust']:.1%} in epoch "
            f"{best['epoch']} and has been below that by more than {ERRORS} standard errors for {count} "
            f"epoch{'s' if count > 1 else ''}"
        )
        context.warn(f"{reason}; training ends after epoch {row['epoch']}, best/ keeps the best epoch")
        raise StopTraining(reason, event)

    def state_dict(self) -> dict[str, Any]:
        return {"right": self._right}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._right = state["right"]
        self._norms = None  # of an epoch that was discarded


def _mean(values: Tensor) -> float | None:
    """Mean; None for no values."""
    return values.double().mean().item() if len(values) else None
