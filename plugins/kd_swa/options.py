"""Options of KD-SWA."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class KdSwaOptions(Options):
    """Defaults are the authors'. Averaging the weights, the other half of the method, is `--modifier swa`."""

    natural_teacher: str | None = option(
        None, help="folder of the run that trained the standard teacher; none trains it first", source="released code"
    )
    robust_teacher: str | None = option(
        None, help="folder of the run that trained the robust teacher; none trains it first", source="released code"
    )
    label_weight: float = option(0.3, help="weight of the given labels", low=0.0, source="released code")
    natural_weight: float = option(0.1, help="weight of the standard teacher", low=0.0, source="released code")
    robust_weight: float = option(0.6, help="weight of the robust teacher", low=0.0, source="released code")
    temperature: float = option(
        2.0, help="what logits are divided by where a teacher is followed", low=1e-3, source="released code"
    )
    steps: int = option(10, help="attack steps per batch", low=1, source="released code")
    step_ratio: float = option(
        0.25,
        help="length of a step: 2/255 at 8/255, in proportion elsewhere",
        unit="eps",
        low=0.0,
        source="released code",
    )
    random_start: bool = option(True, help="start at a uniform point of the ball", source="released code")
    attack_bn: str = bn_option("train", source="released code")
