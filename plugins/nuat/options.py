"""Options of nuclear-norm adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class NuatOptions(Options):
    """Defaults are the authors' for CIFAR-10 and ResNet-18."""

    weight: float = option(
        4.5, help="largest weight of the nuclear norm, in attack and loss", low=0.0, source="released code"
    )
    ramp_share: float = option(
        0.9,
        help="share of the epochs over which the weight grows from 0",
        low=0.0,
        high=1.0,
        source="released code, 90 of 100 epochs",
    )
    noise_ratio: float = option(
        0.5, help="start: plus or minus this in each pixel", unit="eps", low=0.0, source="released code"
    )
    step_ratio: float = option(1.0, help="length of the one step", unit="eps", low=0.0, source="released code")
    attack_bn: str = bn_option("eval", source="released code")
