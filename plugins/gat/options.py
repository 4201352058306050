"""Options of guided adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class GatOptions(Options):
    """Defaults are the authors' for CIFAR-10 and ResNet-18."""

    weight: float = option(
        10.0,
        help="weight of the squared distance of the predictions, in attack and loss",
        low=0.0,
        source="released code",
    )
    late_factor: float = option(
        4.0, help="what the weight is multiplied by late in the run", low=0.0, source="released code"
    )
    late_share: float = option(
        0.86,
        help="share of the epochs after which that is",
        low=0.0,
        high=1.0,
        source="released code, from epoch 86 of 100 counted from 0",
    )
    noise_ratio: float = option(
        0.5, help="start: plus or minus this in each pixel", unit="eps", low=0.0, source="released code"
    )
    step_ratio: float = option(1.0, help="length of the one step", unit="eps", low=0.0, source="released code")
    attack_bn: str = bn_option("eval", source="released code")
