"""Evaluation of a model on images: the record that `evaluate --json` writes. No plugin code runs here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks import Attacker
from timm_robust.data.batch import Batch
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import Measure, accuracy, parse_measure, require_eval, verdicts
from timm_robust.evaluation.autoattack import AutoAttackResult, run_autoattack
from timm_robust.threat import Threat
from timm_robust.versions import hardware, versions

__all__ = ["AutoAttackResult", "Evaluation", "Measure", "evaluate_model", "parse_measure", "run_autoattack"]

Progress = Callable[[str, int, int], None]
"""Called with the name of what runs, how much is done, and the total."""


@dataclass
class Evaluation:
    """Accuracies of one model on one data set; `to_dict()` is the JSON of the command line.

    Attributes:
        clean_accuracy: share of unperturbed images classified correctly, in [0, 1].
        attacks: by name, each with `robust_accuracy` in [0, 1], `n_examples`, `seconds`, and `robust`, one 0/1
            verdict per image in data order; AutoAttack adds `implementation`, `after` and `flags`.
    """

    checkpoint: str
    data: str
    threat: Threat
    n_examples: int
    seed: int
    clean_accuracy: float
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "n_examples": self.n_examples,
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps, "eps_text": self.threat.eps_text},
            "clean_accuracy": self.clean_accuracy,
            "seed": self.seed,
            "versions": versions(),
            "hardware": hardware(),
            "attacks": self.attacks,
        }

    def rows(self) -> list[tuple[str, float, int]]:
        """(name, accuracy in [0, 1], number of images) for tables, clean first."""
        attacks = [(name, entry["robust_accuracy"], entry["n_examples"]) for name, entry in self.attacks.items()]
        return [("clean", self.clean_accuracy, self.n_examples), *attacks]

    def __repr__(self) -> str:
        lines = [f"{name:<12} {100 * value:6.2f} %   n = {n}" for name, value, n in self.rows()]
        return "\n".join([f"{self.data}, {self.threat}, seed {self.seed}", *lines])


def evaluate_model(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    attacks: list[str],
    batch_size: int = 250,
    seed: int = 0,
    checkpoint: str = "",
    data: str = "",
    examples: dict[str, int] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Clean accuracy and each named attack, in float32.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        images: float [N, C, H, W] in [0, 1], on any device.
        targets: int64 [N].
        attacks: names that `parse_measure` knows.
        batch_size: images at once; AutoAttack's verdicts depend on it, since it reseeds at each batch.
        seed: of every random draw.
        examples: how many of the images an attack takes, by its name, where not all.
        progress: told what runs and how far it is.

    Raises:
        UserError: a model in train mode, unknown attack names, images outside [0, 1], labels that the model lacks.
    """
    require_eval(model)
    measures = [parse_measure(name) for name in attacks]
    device = next(model.parameters()).device
    _check(model, images, targets, device)
    attacker = Attacker(model, threat)

    def run(measure: Measure, n: int) -> Tensor:
        done = 0

        def count(images_done: int) -> None:
            nonlocal done
            done += images_done
            if progress:
                progress(measure.name, done, n)

        return verdicts(
            measure, attacker, _batches(images[:n], targets[:n], batch_size, device), seed=seed, progress=count
        )

    clean = run(parse_measure("clean"), len(images))
    result = Evaluation(checkpoint, data, threat, len(images), seed, accuracy(clean))
    for measure in measures:
        if measure.name == "clean":
            continue
        n = min((examples or {}).get(measure.name, len(images)), len(images))
        started = time.perf_counter()
        extra: dict[str, Any] = {}
        if measure.name == "autoattack":
            outcome = run_autoattack(
                model,
                images[:n].to(device),
                targets[:n].to(device),
                threat,
                batch_size=batch_size,
                seed=seed,
                on_batch=lambda attack, i, total: progress(f"autoattack {attack}", i, total) if progress else None,
            )
            stands = outcome.robust
            extra = {
                "implementation": outcome.implementation,
                "batch_size": batch_size,
                "after": outcome.after,
                "flags": outcome.flags,
            }
        else:
            stands = run(measure, n)
        result.attacks[measure.name] = {
            "robust_accuracy": accuracy(stands),
            "n_examples": n,
            "seconds": round(time.perf_counter() - started, 2),
            **extra,
            "robust": stands.int().tolist(),
        }
    return result


def _batches(images: Tensor, targets: Tensor, size: int, device: torch.device) -> list[Batch]:
    starts = range(0, len(images), size)
    return [
        Batch(
            images[i : i + size].to(device),
            targets[i : i + size].to(device),
            torch.arange(i, min(i + size, len(images))),
        )
        for i in starts
    ]


def _check(model: nn.Module, images: Tensor, targets: Tensor, device: torch.device) -> None:
    if len(images) == 0:
        raise UserError("there are no images to evaluate on")
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        raise UserError(
            f"images range from {low:g} to {high:g}: expected pixels in [0, 1], normalisation is in the model"
        )
    with torch.no_grad():
        classes = model(images[:1].to(device)).shape[1]
    if targets.max() >= classes:
        raise UserError(f"the data has class number {int(targets.max())}, the model has only {classes} classes")
