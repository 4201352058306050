"""Evaluation of a model on images: the record that `evaluate --json` writes. No plugin code runs here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import in_batches, robust_correct
from timm_robust.evaluation.attack_spec import ENSEMBLES, AttackSpec, ensemble_version, parse_attack, require_possible
from timm_robust.evaluation.autoattack import AutoAttackProgress, AutoAttackResult, attacks_for, run_autoattack
from timm_robust.evaluation.autoattack_package import implementation_version
from timm_robust.evaluation.budget import Meter
from timm_robust.evaluation.fast import FastMode, fast_entry, require_fast
from timm_robust.evaluation.preconditions import require_deterministic, require_eval, require_finite
from timm_robust.evaluation.state import EvaluationState, subject_key, weights_hash
from timm_robust.threat import Threat
from timm_robust.utils import distributed as processes
from timm_robust.utils.environment import hardware, versions

__all__ = [
    "AttackSpec",
    "AutoAttackResult",
    "Evaluation",
    "FastMode",
    "evaluate_model",
    "parse_attack",
    "run_autoattack",
]

Progress = Callable[[str, float, float, str], None]
"""Called with the name of what runs, how much is done, the total, and what is known so far."""


@dataclass
class Evaluation:
    """Accuracies of one model on one data set; `to_dict()` is the JSON of the command line.

    Attributes:
        clean_accuracy: share of unperturbed images classified correctly, in [0, 1].
        attacks: by name, each with `robust_accuracy` in [0, 1], `n_examples`, `seconds`, and `robust`, one 0/1
            verdict per image in data order; AutoAttack adds `implementation`, `after` and `flags`.
        weights: hash of the network's weights.
    """

    checkpoint: str
    data: str
    threat: Threat
    n_examples: int
    seed: int
    clean_accuracy: float
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "weights": self.weights,
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
    fast: FastMode | None = None,
    random_outputs: bool = False,
    keep: Path | None = None,
    restart: bool = False,
) -> Evaluation:
    """Clean accuracy and each named attack, in float32.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        images: float [N, C, H, W] in [0, 1], on any device.
        targets: int64 [N].
        attacks: names that `parse_attack` knows.
        batch_size: images at once; AutoAttack's verdicts depend on it, since it reseeds at each batch.
        seed: of every random draw.
        examples: how many of the images an attack takes, by its name, where not all.
        progress: told what runs and how far it is.
        fast: run AutoAttack in its fast mode, whose verdicts agree with the reference within the noise of another seed;
            several processes share its images.
        random_outputs: the model's outputs are random on purpose.
        keep: file for what is measured so far; the same call goes on from it. To be deleted when the record is safe.
        restart: forget what that file keeps.

    Raises:
        UserError: a model in train mode, unknown attack names, images outside [0, 1], labels that the model lacks, or
            a file that keeps another evaluation.
    """
    require_eval(model)
    measures = [parse_attack(name) for name in attacks]
    device = next(model.parameters()).device
    _check(model, images, targets, measures, threat, batch_size, fast)
    if not random_outputs:
        require_deterministic(model, images)
    key = {} if keep is None else _key(model, images, targets, threat, batch_size, seed, fast)
    key |= {"attacks": ", ".join(measure.name for measure in measures), "images_by_attack": examples or {}}
    state = EvaluationState(keep, key, restart=restart)
    attacker = Attacker(model, threat)

    def run(measure: AttackSpec, n: int) -> list[int]:
        done = 0

        def count(images_done: int) -> None:
            nonlocal done
            done += images_done
            if progress:
                progress(measure.name, done, n, "")

        batches = in_batches(images[:n], targets[:n], batch_size, device)
        return robust_correct(measure, attacker, batches, seed=seed, progress=count).int().tolist()

    def autoattack(measure: AttackSpec, n: int) -> dict[str, Any]:
        version = ensemble_version(measure)
        kept = state.running.get(measure.name, {})
        tell = _Bar(measure.name, model, version, images[:1].to(device), n, progress) if progress else None
        if fast is not None:
            return fast_entry(
                fast,
                model,
                images[:n],
                targets[:n],
                threat,
                version=version,
                batch_size=batch_size,
                seed=seed,
                on_progress=tell,
                keep=partial(state.keep, measure.name) if keep else None,
                progress=kept,
            )
        outcome = run_autoattack(
            model,
            images[:n],
            targets[:n],
            threat,
            version=version,
            batch_size=batch_size,
            seed=seed,
            on_batch=tell,
            progress=AutoAttackProgress(**kept),
            keep=(lambda at: state.keep(measure.name, at.to_dict())) if keep else None,
        )
        return {
            "implementation": outcome.implementation,
            "mode": "reference",
            "version": version,
            "batch_size": batch_size,
            "after": outcome.after,
            "seconds_by_attack": outcome.seconds,
            "flags": outcome.flags,
            "robust": outcome.robust.int().tolist(),
        }

    def measured(measure: AttackSpec) -> dict[str, Any]:
        n = min((examples or {}).get(measure.name, len(images)), len(images))
        started = time.perf_counter()
        if measure.name in ENSEMBLES:
            entry = autoattack(measure, n)
            seconds = sum(entry["seconds_by_attack"].values())
        else:
            entry = {"robust": run(measure, n)}
            seconds = time.perf_counter() - started
        share = sum(entry["robust"]) / n
        robust = entry.pop("robust")
        return {"robust_accuracy": share, "n_examples": n, "seconds": round(seconds, 2), **entry, "robust": robust}

    clean = state.once("clean", lambda: measured(parse_attack("clean")))
    share = clean["robust_accuracy"]
    result = Evaluation(checkpoint, data, threat, len(images), seed, share, weights=weights_hash(model))
    for measure in measures:
        if measure.name != "clean":
            shared = processes.count() > 1 and measure.name in ENSEMBLES
            result.attacks[measure.name] = state.once(measure.name, partial(measured, measure), shared=shared)
    return result


class _Bar:
    """Turns AutoAttack's batches into work done, work in all, and the robust accuracy so far."""

    def __init__(self, name: str, model: nn.Module, version: str, image: Tensor, n: int, progress: Progress) -> None:
        with torch.no_grad():
            attacks, _ = attacks_for(model(image).shape[1], version)
        self.name, self.n, self.progress = name, n, progress
        self.meter = Meter(attacks, n)

    def __call__(self, attack: str, number: int, of: int, standing: float) -> None:
        done, total = self.meter.update(attack, number / max(of, 1), round(standing * self.n))
        self.progress(f"{self.name} {attack}", done, max(total, 1.0), f"robust so far {standing:.1%}")


def _key(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    batch_size: int,
    seed: int,
    fast: FastMode | None,
) -> dict[str, Any]:
    """What verdicts depend on."""
    return {
        **subject_key(model, images, targets, batch_size, seed),
        "threat": f"{threat.norm} {threat.eps!r}",
        "implementation": implementation_version(),
        "mode": "reference" if fast is None else f"fast, {fast.precision}" + ", compiled" * fast.compile,
        "processes": f"{processes.rank()} of {processes.count()}",
    }


def _check(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    measures: list[AttackSpec],
    threat: Threat,
    batch_size: int,
    fast: FastMode | None,
) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: expected at least 1")
    if len(images) == 0:
        raise UserError("there are no images to evaluate on")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"images range from {low:g} to {high:g}: expected pixels in [0, 1], normalisation is in the model"
        )
    _require_float32(model, images)
    require_finite(model, images, batch_size=batch_size)
    with torch.no_grad():
        classes = model(images[:1].to(next(model.parameters()).device)).shape[1]
    if targets.max() >= classes:
        raise UserError(f"the data has class number {int(targets.max())}, the model has only {classes} classes")
    for measure in measures:
        require_possible(measure, threat, classes)
        if fast is not None and measure.name in ENSEMBLES:
            require_fast(threat, ensemble_version(measure))


@torch.no_grad()
def _require_float32(model: nn.Module, images: Tensor) -> None:
    parameter = next(model.parameters())
    if parameter.dtype == images.dtype:
        return
    try:
        model(images[:1].to(parameter.device))
    except RuntimeError as error:
        held, given = (str(dtype).removeprefix("torch.") for dtype in (parameter.dtype, images.dtype))
        raise UserError(
            f"the model's weights are {held} and it takes no {given} images: call model.float(), or let its forward "
            "convert them"
        ) from error
