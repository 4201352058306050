"""Accuracy over the radius: one number says little about a model that is attacked with half, or twice, the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import robust_correct_of
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.evaluation.state import EvaluationState, subject_key
from timm_robust.evaluation.statistics import wilson
from timm_robust.threat import Threat, parse_eps

MULTIPLES = (0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), 1, Fraction(3, 2), 2, 3, 4)
"""Radii of a curve, in those of the threat: where training aimed, below, and far enough above to fall to zero."""


@dataclass(frozen=True)
class Curve:
    """Robust accuracy of one model at each radius.

    Attributes:
        norm: of the ball.
        eps: radii in units of [0, 1], ascending.
        eps_texts: the same as a user writes them.
        attack: what attacked.
        seed: of its random draws.
        stands: one 0/1 verdict per image in data order, for each radius.
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
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    norm: str,
    eps_values: Sequence[str | float],
    *,
    attack: str = "pgd-10-1",
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    keep: Path | None = None,
    restart: bool = False,
) -> Curve:
    """Robust accuracy at each radius.

    At each radius only the images that stood at all smaller ones are attacked: an adversarial image stays one in a
    larger ball. So the curve never rises, whatever the attack, and costs less than so many evaluations.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        images: float [N, C, H, W] in [0, 1].
        targets: int64 [N].
        norm: "Linf", "L2" or "L1".
        eps_values: radii, as `timm_robust.threat.parse_eps` takes them; put in order, each once; 0 is clean accuracy.
        attack: any name that `parse_attack` knows.
        batch_size: images at once.
        seed: of every random draw, at each radius anew.
        progress: called with the radius, images done and images in all.
        keep: file for the radii that are done; the same call goes on from it.
        restart: forget what is kept there.

    Raises:
        UserError: no radius, one that `parse_eps` refuses, an unknown attack, a model in train mode, or a file of
            another curve.
    """
    measure = parse_attack(attack)
    found = {parse_eps(value, norm)[0]: parse_eps(value, norm)[1] for value in eps_values}
    if not found:
        raise UserError("a curve needs at least one radius: expected some such as 0 4/255 8/255")
    key = {} if keep is None else subject_key(model, images, targets, batch_size, seed)
    state = EvaluationState(
        keep, {**key, "attack": measure.name, "norm": norm, "radii": sorted(found)}, restart=restart
    )
    still_correct = torch.ones(len(images), dtype=torch.bool)
    rows: list[tuple[int, ...]] = []
    for radius in sorted(found):
        at = still_correct.nonzero().squeeze(1)
        done = len(images) - len(at)

        def count(images_done: int, text: str = found[radius]) -> None:
            nonlocal done
            done += images_done
            if progress:
                progress(f"eps {text}", done, len(images))

        def stand(radius: float = radius, at: Tensor = at) -> dict[str, Any]:
            kept = robust_correct_of(
                model,
                images[at.to(images.device)],
                targets[at.to(targets.device)],
                Threat(norm, radius, found[radius]),
                measure if radius > 0 else parse_attack("clean"),
                batch_size=batch_size,
                seed=seed,
                progress=count,
            )
            return {"robust": kept.int().tolist()}

        if len(at):
            still_correct[at] = torch.tensor(state.once(found[radius], stand)["robust"], dtype=torch.bool)
        rows.append(tuple(still_correct.int().tolist()))
    return Curve(
        norm, tuple(sorted(found)), tuple(found[radius] for radius in sorted(found)), measure.name, seed, tuple(rows)
    )
