"""Accuracy over the radius: one number says little about a model that is attacked with half, or twice, the radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import robust_correct_of
from timm_robust.evaluation.attack_spec import CLEAN, AttackSpec, parse_attack
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import DEFAULTS, EvalSettings
from timm_robust.evaluation.state import EvaluationState, inputs_key
from timm_robust.evaluation.statistics import wilson
from timm_robust.threat import Threat, parse_eps
from timm_robust.utils.progress import Progress

MULTIPLES = (0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), 1, Fraction(3, 2), 2, 3, 4)
"""Radii of a curve in units of the threat's: that of the training, below, and far enough above to reach zero."""


@dataclass(frozen=True)
class Curve:
    """Robust accuracy of one model at each radius.

    Attributes:
        norm: norm of the ball.
        eps: radii in units of [0, 1], ascending.
        eps_texts: the same as users write them.
        attack: name of the attack.
        seed: random seed of the attack.
        still_correct: one 0/1 verdict per image in data order, for each radius.
    """

    norm: str
    eps: tuple[float, ...]
    eps_texts: tuple[str, ...]
    attack: str
    seed: int
    still_correct: tuple[tuple[int, ...], ...]

    @property
    def n_examples(self) -> int:
        return len(self.still_correct[0])

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Shares in [0, 1], never rising."""
        return tuple(sum(row) / len(row) for row in self.still_correct)

    def intervals(self) -> list[tuple[float, float]]:
        """Wilson's 95 % interval at each radius."""
        return [wilson(sum(row), len(row)) for row in self.still_correct]

    def to_dict(self) -> dict[str, Any]:
        return {
            "norm": self.norm,
            "eps": list(self.eps),
            "eps_text": list(self.eps_texts),
            "attack": self.attack,
            "seed": self.seed,
            "n_examples": self.n_examples,
            "robust_accuracy": list(self.accuracies),
            "interval_95": [list(one) for one in self.intervals()],
            "robust": [list(row) for row in self.still_correct],
        }


def grid(threat: Threat, multiples: Sequence[int | Fraction] = MULTIPLES) -> list[str]:
    """Radii around the threat's as texts, such as 2/255; under Linf none above the whole pixel range."""
    top, _, bottom = threat.eps_text.partition("/")
    texts = []
    for multiple in multiples:
        value = Fraction(top) * multiple
        number = f"{float(value):g}"
        if float(value) / float(bottom or 1) <= 1 or threat.norm != "Linf":
            texts.append("0" if not value else f"{number}/{bottom}" if bottom else number)
    return texts


def accuracy_curve(
    inputs: EvalInputs,
    eps_values: Sequence[str | float],
    attack: str = "pgd-10-1",
    settings: EvalSettings = DEFAULTS,
    *,
    progress: Progress | None = None,
) -> Curve:
    """Robust accuracy at each radius.

    At each radius only the images that withstood all smaller ones are attacked: an adversarial image stays one in a
    larger ball. So the curve never rises, whatever the attack, and costs less than one evaluation per radius.

    Args:
        inputs: model, images and labels; of the threat only the norm is used.
        eps_values: radii, as `timm_robust.threat.parse_eps` takes them, in any order; 0 is clean accuracy.
        attack: any name that `parse_attack` knows.
        settings: batch size; seed, the same at each radius; file for the radii that are done.
        progress: called with the images done at each radius.

    Raises:
        UserError: no radius, one that `parse_eps` refuses, an unknown attack, or a kept state of another curve.
    """
    spec = parse_attack(attack)
    threats = _threats(inputs.threat.norm, eps_values)
    key = {} if settings.keep is None else inputs_key(inputs, settings)
    key |= {"attack": spec.name, "norm": inputs.threat.norm, "radii": [one.eps for one in threats]}
    state = EvaluationState(settings.keep, key, restart=settings.restart)
    still_correct = torch.ones(len(inputs), dtype=torch.bool)
    rows: list[tuple[int, ...]] = []
    for threat in threats:
        at = still_correct.nonzero().squeeze(1)
        if len(at):
            entry = state.once(threat.eps_text, partial(_entry_at, threat, at, inputs, spec, settings, progress))
            still_correct[at] = torch.tensor(entry["robust"], dtype=torch.bool)
        rows.append(tuple(still_correct.int().tolist()))
    return Curve(
        norm=inputs.threat.norm,
        eps=tuple(one.eps for one in threats),
        eps_texts=tuple(one.eps_text for one in threats),
        attack=spec.name,
        seed=settings.seed,
        still_correct=tuple(rows),
    )


def _threats(norm: str, eps_values: Sequence[str | float]) -> list[Threat]:
    """A threat for each radius, ascending, each radius once."""
    if not eps_values:
        raise UserError("a curve needs at least one radius: expected some such as 0 4/255 8/255")
    texts = dict(parse_eps(value, norm) for value in eps_values)
    return [Threat(norm, eps, texts[eps]) for eps in sorted(texts)]


def _entry_at(
    threat: Threat, at: Tensor, inputs: EvalInputs, spec: AttackSpec, settings: EvalSettings, progress: Progress | None
) -> dict[str, Any]:
    """Verdicts at one radius for the images `at`; the others were broken before."""
    before = len(inputs) - len(at)

    def report(name: str, done: float, total: float, status: str = "") -> None:
        if progress:
            progress(f"eps {threat.eps_text}", before + len(at) * done / total, len(inputs), status)

    part = inputs.subset(at).with_threat(threat)
    robust = robust_correct_of(part, spec if threat.eps > 0 else CLEAN, settings, progress=report)
    return {"robust": robust.int().tolist()}
