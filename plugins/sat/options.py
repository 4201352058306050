"""Options of smooth adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class SatOptions(Options):
    """Defaults are the authors'; the activation is the model's (`--activation`), label smoothing the recipe's."""

    steps: int = steps_option(1, source="released code")
    step_ratio: float = step_option(
        1.0,
        help="step size; at least eps / steps is used, so that the attack can reach the edge of the ball",
        source="released code",
    )
    clean_start: float = option(
        0.2,
        help="probability, per batch, of starting at the clean image instead of a uniform point of the ball",
        low=0.0,
        high=1.0,
        source="released code",
    )
    smooth_backward: str = option(
        "both",
        help="phase that uses the smooth derivative of --activation relu-smooth-backward",
        choices=("none", "attack", "update", "both"),
        source="the paper's ablation",
    )
    attack_bn: str = bn_option("eval", source="released code")
