"""Options of helper-based adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class HatOptions(Options):
    """Defaults are those of the authors' command for CIFAR-10 without extra data."""

    helper: str | None = option(
        None,
        help="folder of the run that trained the standard network; none trains it first",
        source="paper; the released code takes the network's name",
    )
    h: float = option(
        2.0, help="helper images: the perturbation times this, unclipped", low=0.0, source="released code"
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
    steps: int = option(10, help="attack steps per batch", low=1, source="released code")
    step_ratio: float = option(
        0.25,
        help="length of a step: 2/255 at 8/255, in proportion elsewhere",
        unit="eps",
        low=0.0,
        source="released code",
    )
    attack_bn: str = bn_option("eval", source="released code; its recipe for extra data has frozen")
