"""Plugin: the method, its recipe, and a log of its penalty."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, hookimpl

from .recipes import RECIPES


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="logit-squeeze",
        summary="PGD adversarial training with a penalty on the squared norm of the logits",
        reference=Reference(title="Adversarial Logit Pairing", arxiv="1803.06373"),
        api_version=1,
        target="timm_robust_logit_squeeze.logit_squeeze:LogitSqueeze",
        config="timm_robust_logit_squeeze.options:LogitSqueezeOptions",
    )


@hookimpl
def timm_robust_recipes() -> Iterable[RecipeSpec]:
    return RECIPES


@hookimpl
def timm_robust_epoch_end(run: Any, epoch: int, metrics: Mapping[str, Any]) -> None:
    """Appends the epoch's penalty to `logit_squeeze.csv`; runs of other methods have none."""
    if "train_squeeze" in metrics:
        with (run.output / "logit_squeeze.csv").open("a") as file:
            file.write(f"{epoch},{metrics['train_squeeze']:.6g}\n")
