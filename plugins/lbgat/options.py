"""Options of LBGAT."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class LbgatOptions(Options):
    """Defaults are the authors'; 0.031 and 0.007 of the released code became 8/255 and 2/255, today's convention."""

    natural_model: str | None = option(
        None,
        help="timm name of the natural network; default: the model's own architecture",
        source="ours; the paper has ResNet-18 beside WideResNet-34-10",
    )
    beta: float = option(
        0.0,
        help="weight of TRADES' divergence, 0 or 6 in the paper; higher: more robust, less accurate",
        low=0.0,
        source="released script and CIFAR-10 models; 6 in the code itself",
    )
    steps: int = steps_option(source="released code")
    step_ratio: float = step_option(source="released code has 0.007 at 0.031")
    attack_bn: str = bn_option("eval", source="released code")
