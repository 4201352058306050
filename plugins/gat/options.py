"""Options of guided adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, option, step_option


@dataclass(frozen=True, kw_only=True)
class GatOptions(Options):
    """Defaults are the authors' for CIFAR-10 and ResNet-18."""

    weight: float = option(
        10.0,
        help="weight of the squared distance between clean and adversarial predictions, in attack and loss",
        low=0.0,
        source="released code",
    )
    late_factor: float = option(4.0, help="factor on the weight late in training", low=0.0, source="released code")
    late_share: float = option(
        0.86,
        help="fraction of training after which `late_factor` applies",
        low=0.0,
        high=1.0,
        source="released code, from epoch 86 of 100 counted from 0",
    )
    noise_ratio: float = option(
        0.5, help="initial perturbation: plus or minus this in each pixel", unit="eps", low=0.0, source="released code"
    )
    step_ratio: float = step_option(1.0, help=ONE_STEP, source="released code")
    attack_bn: str = bn_option("eval", source="released code")
