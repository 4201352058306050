"""Options of ZeroGrad and MultiGrad."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, option, step_option


@dataclass(frozen=True, kw_only=True)
class ZeroGradOptions(Options):
    """Defaults are the authors' for CIFAR-10."""

    quantile: float = option(
        0.35,
        help="fraction of each image's pixels, those of smallest gradient, that stay unchanged; 0.45 on CIFAR-100",
        low=0.0,
        high=1.0,
        source="released code",
    )
    step_ratio: float = step_option(2.0, help=ONE_STEP, source="released code")
    attack_bn: str = bn_option("train", source="released code")


@dataclass(frozen=True, kw_only=True)
class MultiGradOptions(Options):
    """Defaults are the authors' for CIFAR-10."""

    starts: int = option(
        3, help="number of random starts, whose gradient signs must all agree", low=1, source="released code"
    )
    step_ratio: float = step_option(
        2.0,
        help="size of the single step from the clean image, before the projection into the ball",
        source="released code",
    )
    attack_bn: str = bn_option("train", source="released code")
