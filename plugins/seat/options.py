"""Options of SEAT and SEAT-FL."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, option, step_option


@dataclass(frozen=True, kw_only=True)
class SeatOptions(Options):
    """Defaults are the released code's."""

    weight: float = option(
        0.6, help="weight of the linearity residual, in attack and loss", low=0.0, source="released code"
    )
    flood: float = option(
        0.0, help="flooding level: the adversarial loss is pushed back up below it", low=0.0, source="released code"
    )
    attack_loss: str = option(
        "margin",
        help="objective of the attack: margin of the probabilities, or cross-entropy",
        choices=("margin", "ce"),
        source="released code; ce is commented out there",
    )
    per_sample: bool = option(
        False,
        help="linearity residual: mean of absolute values, instead of the absolute value of the batch mean",
        source="ours; the released code uses the batch mean",
    )
    noise_ratio: float = option(
        1.0, help="initial perturbation: plus or minus this in each pixel", unit="eps", low=0.0, source="released code"
    )
    step_ratio: float = step_option(1.0, help=ONE_STEP, source="released code")
    attack_bn: str = bn_option("train", source="released code")


@dataclass(frozen=True, kw_only=True)
class SeatFlOptions(SeatOptions):
    """SEAT with flooding."""

    flood: float = option(
        1.0,
        help="flooding level: the adversarial loss is pushed back up below it",
        low=0.0,
        source="ours; the published level is not in the released code",
    )
