"""Options of ZeroGrad and MultiGrad."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class ZeroGradOptions(Options):
    """Defaults are the authors' for CIFAR-10."""

    quantile: float = option(
        0.35,
        help="share of each image's pixels, those of smallest gradient, that the step leaves alone; 0.45 on CIFAR-100",
        low=0.0,
        high=1.0,
        source="released code",
    )
    step_ratio: float = option(2.0, help="length of the one step", unit="eps", low=0.0, source="released code")
    attack_bn: str = bn_option("train", source="released code")


@dataclass(frozen=True, kw_only=True)
class MultiGradOptions(Options):
    """Defaults are the authors' for CIFAR-10."""

    starts: int = option(3, help="random starts whose signs must all agree", low=1, source="released code")
    step_ratio: float = option(
        2.0,
        help="length of the one step, from the clean image, before it is held to the ball",
        unit="eps",
        low=0.0,
        source="released code",
    )
    attack_bn: str = bn_option("train", source="released code")
