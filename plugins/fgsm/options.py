"""Options of FGSM adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, step_option


@dataclass(frozen=True, kw_only=True)
class FgsmOptions(Options):
    """No random start and a full step: the setting that the literature shows to collapse."""

    step_ratio: float = step_option(1.0, help=ONE_STEP, source="Andriushchenko and Flammarion, released code")
    attack_bn: str = bn_option("train", source="Andriushchenko and Flammarion, released code")
