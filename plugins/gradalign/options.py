"""Options of GradAlign."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, option, step_option


@dataclass(frozen=True, kw_only=True)
class GradAlignOptions(Options):
    """Defaults are the authors' for CIFAR-10."""

    weight: float | None = option(
        None,
        help="weight of the penalty; default: 0.2 at 8/255, ten times as much for each further 8/255",
        low=0.0,
        source="released code's table for CIFAR-10, which this rule reproduces",
    )
    step_ratio: float = step_option(1.0, help=ONE_STEP, source="released code")
    attack_bn: str = bn_option("train", source="released code")
