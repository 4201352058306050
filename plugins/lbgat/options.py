"""Options of LBGAT."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class LbgatOptions(Options):
    """Defaults are the authors'; 0.031 and 0.007 of the released code became 8/255 and 2/255, as is usual by now."""

    natural_model: str | None = option(
        None,
        help="timm name of the natural network; none takes the model's own architecture",
        source="ours; the paper has ResNet-18 beside WideResNet-34-10",
    )
    beta: float = option(
        0.0,
        help="weight of TRADES' divergence: 0 or 6 in the paper; 6 is robuster, less accurate",
        low=0.0,
        source="released script and CIFAR-10 models; 6 in the code itself",
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
