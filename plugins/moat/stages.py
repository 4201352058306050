"""Parser of MOAT's stages, such as `benign:1, fgsm-rs:1, 0.5*benign + 0.5*pgd-3:2`. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass

from timm_robust.errors import UserError

PRESETS = {
    "r1": "benign:1, fgsm-rs:1, pgd-3:1",
    "r2": "benign:1, benign + fgsm-rs:1, benign + fgsm-rs + pgd-3:1",
}
"""Two readings of the abstract, both ours: the paper's stages are unknown to us."""

EXPECTED = (
    "expected stages such as 'benign:1, fgsm-rs:1, 0.5*benign + 0.5*pgd-3:2' "
    f"with the kinds benign, fgsm, fgsm-rs and pgd-K, or one of {', '.join(PRESETS)}"
)


@dataclass(frozen=True)
class Kind:
    """Kind of examples and its weight; `steps` is the number of attack steps, 0 for clean images."""

    name: str
    steps: int
    random_start: bool
    weight: float


@dataclass(frozen=True)
class Stage:
    """Mixture of examples that is trained on for `length` iterations or epochs."""

    kinds: tuple[Kind, ...]
    length: int

    @property
    def cost(self) -> float:
        """Forward-backward passes per image: the attack steps of each kind plus one update."""
        return sum(kind.steps + 1 for kind in self.kinds)


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Parses the stages of one period.

    Raises:
        UserError: text that is not of the form in `EXPECTED`, or weights of a stage that do not sum to 1.
    """
    written = PRESETS.get(text.strip().lower(), text)
    stages = []
    for part in written.split(","):
        mixture, _, length = part.rpartition(":")
        if not re.fullmatch(r"\s*[1-9]\d*\s*", length):
            raise UserError(
                f"option 'stages' is {text!r}: the length {length.strip()!r} is not a positive integer; {EXPECTED}"
            )
        kinds = [_kind(word, text) for word in mixture.split("+")]
        given = [weight for *_, weight in kinds if weight is not None]
        if given and (len(given) != len(kinds) or abs(sum(given) - 1) > 1e-6):
            raise UserError(f"option 'stages' is {text!r}: the weights of {part.strip()!r} do not sum to 1")
        even = 1 / len(kinds)
        stages.append(
            Stage(tuple(Kind(n, s, r, even if weight is None else weight) for n, s, r, weight in kinds), int(length))
        )
    return tuple(stages)


def _kind(word: str, text: str) -> tuple[str, int, bool, float | None]:
    match = re.fullmatch(r"\s*(?:(\d+\.?\d*|\.\d+)\s*\*\s*)?(benign|fgsm-rs|fgsm|pgd-([1-9]\d*))\s*", word)
    if not match:
        raise UserError(f"option 'stages' is {text!r}: {word.strip()!r} is not a kind of examples; {EXPECTED}")
    name, steps = match[2], int(match[3] or 1)
    return name, 0 if name == "benign" else steps, name != "fgsm", float(match[1]) if match[1] else None


def period(stages: tuple[Stage, ...]) -> int:
    """Iterations or epochs until the stages repeat."""
    return sum(stage.length for stage in stages)


def stage_at(stages: tuple[Stage, ...], position: int) -> Stage:
    """The stage of iteration or epoch `position` (from 0)."""
    position %= period(stages)
    return [stage for stage in stages for _ in range(stage.length)][position]


def mean_cost(stages: tuple[Stage, ...]) -> float:
    """Forward-backward passes per image, averaged over a period."""
    return sum(stage.length * stage.cost for stage in stages) / period(stages)
