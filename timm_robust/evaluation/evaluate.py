"""Evaluation of a model on images: the record that `evaluate --json` writes. No plugin code runs here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from timm_robust.evaluation.accuracy import robust_correct_of
from timm_robust.evaluation.attack_spec import (
    CLEAN,
    ENSEMBLES,
    AttackSpec,
    ensemble_version,
    parse_attack,
    require_possible,
)
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.evaluation.autoattack_package import implementation_version
from timm_robust.evaluation.fast import fast_entry, require_fast
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import DEFAULTS, EvalSettings
from timm_robust.evaluation.state import EvaluationState, Slot, inputs_key
from timm_robust.threat import Threat
from timm_robust.utils import distributed
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.progress import Progress


@dataclass
class Evaluation:
    """Accuracies of one model on one data set; `to_dict()` is the JSON of the command line.

    Attributes:
        checkpoint, data: names of the model and of the data set.
        threat: ball that attacks were held to.
        n_examples: number of images.
        seed: random seed of the attacks.
        clean_accuracy: share of unperturbed images classified correctly, in [0, 1].
        attacks: by name, each with `robust_accuracy` in [0, 1], `n_examples`, `seconds`, and `robust`, one 0/1
            verdict per image in data order; AutoAttack adds `implementation`, `after` and `flags`.
        weights: hash of the model's weights.
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
            "threat": self.threat.to_dict(),
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
    inputs: EvalInputs,
    attacks: Sequence[str],
    settings: EvalSettings = DEFAULTS,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Clean accuracy and the accuracy under each attack, in float32.

    Args:
        inputs: model, images, labels and threat.
        attacks: names that `parse_attack` knows.
        settings: batch size, seed, and the rest.
        progress: called with the progress of the running attack.

    Raises:
        UserError: unknown attack names, attacks that the norm, the number of classes or the fast mode does not allow,
            or a kept state of another evaluation.
    """
    specs = [parse_attack(name) for name in attacks]
    for spec in specs:
        require_possible(spec, inputs.threat, inputs.num_classes)
        if settings.fast is not None and spec.name in ENSEMBLES:
            require_fast(inputs.threat, ensemble_version(spec))
    key = {} if settings.keep is None else _key(inputs, settings)
    key |= {"attacks": ", ".join(spec.name for spec in specs), "images_by_attack": dict(settings.examples)}
    state = EvaluationState(settings.keep, key, restart=settings.restart)

    def entry(spec: AttackSpec) -> dict[str, Any]:
        shared = distributed.world_size() > 1 and spec.name in ENSEMBLES
        run = partial(_entry, inputs, spec, settings, state.slot(spec.name), progress)
        return state.once(spec.name, run, shared=shared)

    clean = entry(CLEAN)["robust_accuracy"]
    found = {spec.name: entry(spec) for spec in specs if spec.name != "clean"}
    return Evaluation(
        checkpoint=inputs.name,
        data=inputs.data,
        threat=inputs.threat,
        n_examples=len(inputs),
        seed=settings.seed,
        clean_accuracy=clean,
        attacks=found,
        weights=inputs.weights,
    )


def _entry(
    inputs: EvalInputs, spec: AttackSpec, settings: EvalSettings, slot: Slot, progress: Progress | None
) -> dict[str, Any]:
    """The record's entry of one attack."""
    part = inputs.subset(slice(settings.examples.get(spec.name, len(inputs))))
    started = time.perf_counter()
    if spec.name in ENSEMBLES:
        run = _reference_entry if settings.fast is None else fast_entry
        details = run(part, ensemble_version(spec), settings, slot=slot, progress=progress)
        seconds = sum(details["seconds_by_attack"].values())
    else:
        details = {"robust": robust_correct_of(part, spec, settings, progress=progress).int().tolist()}
        seconds = time.perf_counter() - started
    robust = details.pop("robust")
    return {
        "robust_accuracy": sum(robust) / len(part),
        "n_examples": len(part),
        "seconds": round(seconds, 2),
        **details,
        "robust": robust,
    }


def _reference_entry(
    inputs: EvalInputs, version: str, settings: EvalSettings, *, slot: Slot, progress: Progress | None
) -> dict[str, Any]:
    result = run_autoattack(inputs, version, settings, slot=slot, progress=progress)
    return {
        "implementation": result.implementation,
        "mode": "reference",
        "version": version,
        "batch_size": settings.batch_size,
        "after": result.after,
        "seconds_by_attack": result.seconds,
        "flags": result.flags,
        "robust": result.robust.int().tolist(),
    }


def _key(inputs: EvalInputs, settings: EvalSettings) -> dict[str, Any]:
    """Plain values that the verdicts depend on."""
    fast = settings.fast
    return {
        **inputs_key(inputs, settings),
        "threat": f"{inputs.threat.norm} {inputs.threat.eps!r}",
        "implementation": implementation_version(),
        "mode": "reference" if fast is None else f"fast, {fast.precision}" + ", compiled" * fast.compile,
        "processes": f"{distributed.rank()} of {distributed.world_size()}",
    }
