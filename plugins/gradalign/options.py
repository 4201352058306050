"""Options of GradAlign."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class GradAlignOptions(Options):
    """Defaults are the authors' for CIFAR-10."""

    weight: float | None = option(
        None,
        help="weight of the penalty; none takes 0.2 at 8/255, ten times as much for each 8/255 more",
        low=0.0,
        source="released code's table for CIFAR-10, which this rule reproduces",
    )
    step_ratio: float = option(1.0, help="length of the one step", unit="eps", low=0.0, source="released code")
    attack_bn: str = bn_option("train", source="released code")
