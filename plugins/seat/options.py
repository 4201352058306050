"""Options of SEAT and SEAT-FL."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class SeatOptions(Options):
    """Defaults are the released code's."""

    weight: float = option(
        0.6, help="weight of the linearity residual, in attack and loss", low=0.0, source="released code"
    )
    flood: float = option(
        0.0, help="level below which the adversarial loss is pushed up again", low=0.0, source="released code"
    )
    attack_loss: str = option(
        "margin",
        help="what the attack ascends: the margin of the probabilities, or cross-entropy",
        choices=("margin", "ce"),
        source="released code; ce stands there as a comment",
    )
    per_sample: bool = option(
        False,
        help="residual: mean of each sample's absolute value, not the absolute value of the batch's mean",
        source="ours; the released code has the batch's",
    )
    noise_ratio: float = option(
        1.0, help="start: plus or minus this in each pixel", unit="eps", low=0.0, source="released code"
    )
    step_ratio: float = option(1.0, help="length of the one step", unit="eps", low=0.0, source="released code")
    attack_bn: str = bn_option("train", source="released code")


@dataclass(frozen=True, kw_only=True)
class SeatFlOptions(SeatOptions):
    """SEAT with flooding."""

    flood: float = option(
        1.0,
        help="level below which the adversarial loss is pushed up again",
        low=0.0,
        source="ours; the published level is not in the released code",
    )
