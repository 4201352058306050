"""Options of FGSM with a random start."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, step_option


@dataclass(frozen=True, kw_only=True)
class FgsmRsOptions(Options):
    """Defaults are the authors'."""

    step_ratio: float = step_option(
        1.25,
        help="size of the single attack step, 10/255 at 8/255; much larger steps cause catastrophic overfitting",
        source="released code",
    )
    attack_bn: str = bn_option("train", source="released code")
