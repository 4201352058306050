"""Settings of an evaluation that its verdicts depend on, and where an unfinished one is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from timm_robust.errors import UserError, unknown

PRECISIONS = ("fp32", "bf16")
"""Precisions in which the fast mode crafts."""


@dataclass(frozen=True)
class FastMode:
    """Settings of AutoAttack's fast mode.

    Attributes:
        precision: "fp32" or "bf16" while crafting; verdicts are in float32 either way.
        compile: compile full batches, which pays on a GPU.

    Raises:
        UserError: another precision.
    """

    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision of the fast mode", self.precision, PRECISIONS)


@dataclass(frozen=True)
class EvalSettings:
    """Settings that all attacks of an evaluation share.

    Attributes:
        batch_size: images per forward pass; AutoAttack's verdicts depend on it, since it reseeds at each batch.
        seed: random seed of every attack.
        fast: run AutoAttack in its fast mode, with these settings; None for the reference.
        examples: number of images for single attacks, by name; all images for the others.
        keep: file for unfinished results, from which the same call resumes; delete it once the record is written.
        restart: ignore what `keep` holds.

    Raises:
        UserError: a batch size below 1.
    """

    batch_size: int = 250
    seed: int = 0
    fast: FastMode | None = None
    examples: Mapping[str, int] = field(default_factory=dict)
    keep: Path | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}: expected at least 1")


DEFAULTS = EvalSettings()
