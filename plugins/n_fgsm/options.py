"""Options of N-FGSM."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, option, step_option


@dataclass(frozen=True, kw_only=True)
class NFgsmOptions(Options):
    """Defaults are the authors' for CIFAR; on ImageNet they use noise 1."""

    noise_ratio: float = option(
        2.0,
        help="half width of the uniform noise; larger values prevent collapse at larger eps",
        unit="eps",
        low=0.0,
        source="paper and released code",
    )
    step_ratio: float = step_option(1.0, help=ONE_STEP, source="released code")
    attack_bn: str = bn_option("train", source="released code")
