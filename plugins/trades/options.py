"""Options of TRADES."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class TradesOptions(Options):
    """Defaults are the authors'; 0.031 and 0.007 of the released code became 8/255 and 2/255, today's convention."""

    beta: float = option(
        6.0,
        help="weight of the divergence between clean and adversarial predictions; higher: more robust, less accurate",
        low=0.0,
        source="released code; 1/lambda in the paper",
    )
    steps: int = steps_option(source="released code")
    step_ratio: float = step_option(source="released code has 0.007 at 0.031")
    attack_bn: str = bn_option("eval", source="released code")
