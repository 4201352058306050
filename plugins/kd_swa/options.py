"""Options of KD-SWA."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, start_option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class KdSwaOptions(Options):
    """Defaults are the authors'. Weight averaging, the other half of the method, is the modifier `swa`."""

    natural_teacher: str | None = option(
        None, help="run folder of the standard teacher; default: train one first", source="released code"
    )
    robust_teacher: str | None = option(
        None, help="run folder of the robust teacher; default: train one first", source="released code"
    )
    label_weight: float = option(
        0.3, help="weight of the cross-entropy with the labels", low=0.0, source="released code"
    )
    natural_weight: float = option(
        0.1, help="weight of the distillation from the standard teacher", low=0.0, source="released code"
    )
    robust_weight: float = option(
        0.6, help="weight of the distillation from the robust teacher", low=0.0, source="released code"
    )
    temperature: float = option(2.0, help="distillation temperature", low=1e-3, source="released code")
    steps: int = steps_option(source="released code")
    step_ratio: float = step_option(source="released code")
    random_start: bool = start_option(source="released code")
    attack_bn: str = bn_option("train", source="released code")
