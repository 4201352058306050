"""Options of smooth adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class SatOptions(Options):
    """Defaults are the authors'; the activation is the model's (`--activation`), label smoothing the recipe's."""

    steps: int = option(1, help="attack steps per batch", low=1, source="released code")
    step_ratio: float = option(
        1.0,
        help="length of a step; raised to eps / steps where it is shorter, so that the ball's edge can be reached",
        unit="eps",
        low=0.0,
        source="released code",
    )
    clean_start: float = option(
        0.2,
        help="probability per batch that the attack starts at the clean image instead of a uniform point of the ball",
        low=0.0,
        high=1.0,
        source="released code",
    )
    smooth_backward: str = option(
        "both",
        help="with --activation relu-smooth-backward: which phase uses its smooth derivative",
        choices=("none", "attack", "update", "both"),
        source="the paper's ablation",
    )
    attack_bn: str = bn_option("eval", source="released code")
