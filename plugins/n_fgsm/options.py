"""Options of N-FGSM."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class NFgsmOptions(Options):
    """Defaults are the authors' for CIFAR; on ImageNet they take noise 1."""

    noise_ratio: float = option(
        2.0,
        help="noise is uniform in plus or minus this; more of it holds at larger eps",
        unit="eps",
        low=0.0,
        source="paper and released code",
    )
    step_ratio: float = option(1.0, help="length of the one step", unit="eps", low=0.0, source="released code")
    attack_bn: str = bn_option("train", source="released code")
