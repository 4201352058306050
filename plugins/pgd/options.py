"""Options of PGD adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, start_option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class PgdOptions(Options):
    """Defaults are those of the code released with Rice et al., ICML 2020."""

    steps: int = steps_option(source="Rice et al., released code")
    step_ratio: float = step_option(source="Rice et al., released code")
    random_start: bool = start_option(source="Rice et al., released code")
    stop_after: str | None = option(
        None,
        help="friendly adversarial training: freeze an image after N misclassified steps; a count, or counts by "
        "fraction of training, e.g. 0:1,60/110:2,100/110:3",
        source="none in Rice et al.; Bag of Tricks has that schedule, and does not recommend it",
    )
    attack_bn: str = bn_option("train", source="Rice et al., released code")
