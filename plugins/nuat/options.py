"""Options of nuclear-norm adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, option, step_option


@dataclass(frozen=True, kw_only=True)
class NuatOptions(Options):
    """Defaults are the authors' for CIFAR-10 and ResNet-18."""

    weight: float = option(
        4.5, help="final weight of the nuclear norm, in attack and loss", low=0.0, source="released code"
    )
    ramp_share: float = option(
        0.9,
        help="fraction of training over which the weight grows from 0",
        low=0.0,
        high=1.0,
        source="released code, 90 of 100 epochs",
    )
    noise_ratio: float = option(
        0.5, help="initial perturbation: plus or minus this in each pixel", unit="eps", low=0.0, source="released code"
    )
    step_ratio: float = step_option(1.0, help=ONE_STEP, source="released code")
    attack_bn: str = bn_option("eval", source="released code")
