"""Options of helper-based adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class HatOptions(Options):
    """Defaults are those of the authors' command for CIFAR-10 without extra data."""

    helper: str | None = option(
        None,
        help="run folder of the standard network; default: train one first",
        source="paper; the released code expects the network's name",
    )
    h: float = option(
        2.0, help="factor on the perturbation of helper images, which are not clipped", low=0.0, source="released code"
    )
    beta: float = option(
        2.5,
        help="weight of the divergence between clean and adversarial predictions",
        low=0.0,
        source="released code's command; 3.5 with extra data",
    )
    gamma: float = option(
        0.5, help="weight of the cross-entropy on helper images", low=0.0, source="released code's command"
    )
    steps: int = steps_option(source="released code")
    step_ratio: float = step_option(source="released code")
    attack_bn: str = bn_option("eval", source="released code; its recipe for extra data uses frozen")
