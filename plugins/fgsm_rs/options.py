"""Options of FGSM with a random start."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class FgsmRsOptions(Options):
    """Defaults are the authors'."""

    step_ratio: float = option(
        1.25,
        help="length of the one step: 10/255 at 8/255; much more of it ends in catastrophic overfitting",
        unit="eps",
        low=0.0,
        source="released code",
    )
    attack_bn: str = bn_option("train", source="released code")
