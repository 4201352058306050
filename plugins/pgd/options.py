"""Options of PGD adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class PgdOptions(Options):
    """Defaults are those of the code released with Rice et al., ICML 2020."""

    steps: int = option(10, help="attack steps per batch", low=1, source="Rice et al., released code")
    step_ratio: float = option(
        0.25,
        help="length of a step: 2/255 at 8/255, in proportion elsewhere",
        unit="eps",
        low=0.0,
        source="Rice et al., released code",
    )
    random_start: bool = option(True, help="start at a uniform point of the ball", source="Rice et al., released code")
    stop_after: str | None = option(
        None,
        help="friendly: an image rests once it was found misclassified so often; a count, or counts from shares of the "
        "run on such as 0:1,60/110:2,100/110:3",
        source="none in Rice et al.; Bag of Tricks has that schedule, and does not recommend it",
    )
    attack_bn: str = bn_option("train", source="Rice et al., released code")
