"""Robust overfitting: what a network memorises, measured after each epoch, and a run that ends when it has set in.

Late in training, most often when the rate falls, robust accuracy on held-out images sinks for good while on training
images it still rises (Rice, Wong and Kolter, ICML 2020): the network memorises labels that it cannot learn (Dong et
al., ICLR 2022). Nothing here changes what is trained: no weight, mode, statistic or random draw.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.attacker import Attacker
from timm_robust.data import Batch, Split, make_eval_loader, some
from timm_robust.recipes.recipe import Recipe
from timm_robust.runs.history import ROBUST_OVERFITTING
from timm_robust.training.monitors.catastrophic_overfitting import LEARNED
from timm_robust.utils.random import preserve_rng_state

if TYPE_CHECKING:
    from timm_robust.training.engine import Engine

BINS = 15
"""Of confidence, equally wide, for the calibration error."""

ERRORS = 2
"""Standard errors of the check by which robust accuracy has to be below its best to count as fallen."""


def gradient_norms(predicted: Tensor, labels: Tensor) -> Tensor:
    """Norm of each sample's cross-entropy gradient at the logits, ||p - q||, between 0 and the root of 2.

    At a last linear layer with features h the gradient of its weights and bias has this norm times sqrt(||h||^2 + 1).

    Args:
        predicted, labels: [N, K], rows sum to 1.
    """
    return (predicted - labels).norm(dim=1)


def entropies(labels: Tensor) -> Tensor:
    """Entropy of each row of [N, K], in nats; 0 for a given label, log K where nothing is known."""
    return torch.special.entr(labels).sum(1)


def calibration_error(predicted: Tensor, targets: Tensor) -> float:
    """Expected calibration error: how far confidence is from accuracy, as a mean over bins of confidence.

    Args:
        predicted: [N, K], rows sum to 1.
        targets: int64 [N].
    """
    confidence, classes = predicted.max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    missing = (classes == targets).double() - confidence.double()
    off = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, missing)
    return off.abs().sum().item() / len(targets)


def fallen(rows: Sequence[Mapping[str, Any]], n: int, learned: float) -> tuple[int, Mapping[str, Any] | None]:
    """For how many epochs in a row, up to the last, validation robust accuracy is below its best by more than chance.

    Args:
        rows: of metrics.jsonl.
        n: validation images that were checked.
        learned: clean accuracy from which on robust accuracy means something; what names one class whatever it sees
            withstands every attack.

    Returns:
        that number, and the row of the best epoch; 0 and None where nothing has been learned yet.
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
class Seen:
    """What a network says to some images, on the CPU in double precision.

    Attributes:
        index: int64 [N], which of the images could be read.
        targets: int64 [N].
        clean, adversarial: probabilities [N, K].
    """

    index: Tensor
    targets: Tensor
    clean: Tensor
    adversarial: Tensor

    @property
    def right(self) -> Tensor:
        """Bool [N], as `robust_correct` judges: right on the image, and after the attack."""
        return (self.clean.argmax(1) == self.targets) & (self.adversarial.argmax(1) == self.targets)

    def accuracies(self, of: str) -> dict[str, float | None]:
        """Accuracy clean and under attack, and calibration error under attack."""
        return {
            f"{of}_clean": _mean(self.clean.argmax(1) == self.targets),
            f"{of}_robust": _mean(self.right),
            f"{of}_ece": calibration_error(self.adversarial, self.targets),
        }


@torch.no_grad()
def look(attacker: Attacker, batches: Iterable[Batch], seed: int) -> Seen:
    """Predictions for images and for PGD-10 on all of them, right or wrong; in eval mode, all draws from `seed`."""
    model, parts = attacker.model, []
    alpha = attacker.threat.eps / 4
    with preserve_rng_state(seed), attack_mode(model):
        for batch in batches:
            adversarial = attacker(batch.images, batch.targets, "pgd", steps=10, alpha=alpha, random_start=True)
            both = [attacker.view(images).cpu().double().softmax(1) for images in (batch.images, adversarial)]
            parts.append((batch.index.cpu(), batch.targets.cpu(), *both))
    return Seen(*map(torch.cat, zip(*parts, strict=True)))


class RobustOverfittingMonitor:
    """Measures what is memorised, and ends a run whose robust accuracy has fallen for good.

    Test images are watched and never used: neither best/ nor the end of a run depends on them.

    Args:
        engine: whose run it is. What it ships is measured, as in the check on the validation split.
        recipe: how many images, and after how many epochs a run ends.

    Attributes:
        on: whether anything is measured.
    """

    def __init__(self, engine: Engine, recipe: Recipe) -> None:
        self.engine, self.recipe = engine, recipe
        self.on = recipe.diagnose > 0
        self._right: Tensor | None = None  # of the training images, by the best epoch so far
        self._norms = torch.zeros(2, device=engine.device)  # sum and number in this epoch, without waiting for either

    @cached_property
    def _train(self) -> tuple[Split, np.ndarray]:
        """The training images, and their positions in the split; the same throughout a run."""
        return some(self.engine.config.data.train, self.recipe.diagnose, self.engine.config.seed)

    def add(self, norm: Tensor) -> None:
        """Takes the norm of the parameters' gradient before a step; those that overflowed are left out."""
        if self.on:
            self._norms += torch.stack([norm.nan_to_num(0.0, 0.0, 0.0), norm.isfinite().to(norm.dtype)])

    def close(self, rows: list[dict[str, Any]], checked: Tensor) -> None:
        """Ends an epoch: what was seen, and whether the run ends, goes into its row.

        Args:
            rows: of metrics.jsonl, this epoch's last.
            checked: int64 [N], classes of the validation images that were checked.
        """
        if self.on:
            started = time.perf_counter()
            with self.engine.counter.paused():
                found = self._measure(best=rows[-1]["best"])
            rows[-1]["diagnosis"] = {name: None if value is None else round(value, 6) for name, value in found.items()}
            rows[-1]["diagnosis_seconds"] = round(time.perf_counter() - started, 2)
        if self.recipe.stop_on_overfitting and self.engine.defense.adversarial:
            self._judge(rows, checked)

    def _measure(self, best: bool) -> dict[str, float | None]:
        engine, (part, positions) = self.engine, self._train
        train, test = (self._look(split) for split in (part, engine.config.data.test))
        index = torch.from_numpy(positions)[train.index]
        labels = engine.defense.soft_labels(*(t.to(engine.device) for t in (index, train.targets))).cpu().double()
        g = gradient_norms(train.adversarial, labels)
        if best:
            self._right = torch.zeros(len(part), dtype=torch.bool).index_copy_(0, train.index, train.right)
        total, number = self._norms.tolist()
        self._norms.zero_()
        found: dict[str, float | None] = {
            **train.accuracies("train"),
            **test.accuracies("test"),
            "g": _mean(g),
            "gradient_norm": total / number if number else None,
            "label_entropy": _mean(entropies(labels)),
            "relabelled": _mean(labels.argmax(1) != train.targets),
        }
        if self._right is not None:  # where a method's first epochs cannot be the best, nobody knows yet
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

    def _look(self, split: Split) -> Seen:
        batch_size = max(self.recipe.batch_size, 250)
        n = min(self.recipe.diagnose, len(split))
        batches = make_eval_loader(split, batch_size=batch_size, device=self.engine.device, n_examples=n)
        return look(self.engine.checker, batches, self.engine.config.seed)

    def _judge(self, rows: list[dict[str, Any]], checked: Tensor) -> None:
        """Records the event that ends the run, where the last epochs give reason."""
        engine, patience, row = self.engine, self.recipe.stop_on_overfitting, rows[-1]
        commonest = checked.bincount().max().item() / len(checked)
        ended = [one for one in rows if engine.defense.may_be_best(one["epoch"] - 1)]  # none in the middle of a cycle
        count, best = fallen(ended, len(checked), commonest + LEARNED)
        if engine.accelerator.num_processes > 1:
            count = broadcast_object_list([count])[0]  # all end, or none
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
        row["events"] = [*row.get("events", []), event]
        engine.display.warn(
            f"robust overfitting: robust accuracy on validation images was {best['val_robust']:.1%} in epoch "
            f"{best['epoch']} and has been below that by more than {ERRORS} standard errors for {count} "
            f"epoch{'s' if count > 1 else ''}; training ends after epoch {row['epoch']}, best/ keeps the best epoch"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"right": self._right}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._right = state["right"]
        self._norms.zero_()  # those of an epoch that was given up


def _mean(values: Tensor) -> float | None:
    """None of no values."""
    return values.double().mean().item() if len(values) else None
