"""Options of logit squeezing."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class LogitSqueezeOptions(Options):
    """`steps`, `step_ratio` and `attack_bn` are read by the host's PGD."""

    weight: float = option(0.01, help="weight of the penalty", low=0.0, source="our choice")
    steps: int = option(10, help="attack steps per batch", low=1, source="as PGD training")
    step_ratio: float = option(0.25, help="length of a step", unit="eps", low=0.0, source="as PGD training")
    attack_bn: str = bn_option("eval", source="our choice")
