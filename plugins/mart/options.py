"""Options of MART."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class MartOptions(Options):
    """Defaults are the authors' for ResNet-18; 0.031 and 0.007 of the released code became 8/255 and 2/255."""

    beta: float = option(
        5.0,
        help="weight of the divergence between clean and adversarial predictions",
        low=0.0,
        source="released code for ResNet-18; it has 6 for WideResNet-34-10",
    )
    steps: int = option(10, help="attack steps per batch", low=1, source="released code")
    step_ratio: float = option(
        0.25,
        help="length of a step: 2/255 at 8/255, in proportion elsewhere",
        unit="eps",
        low=0.0,
        source="released code has 0.007 at 0.031",
    )
    attack_bn: str = bn_option("eval", source="released code")
