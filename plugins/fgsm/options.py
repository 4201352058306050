"""Options of FGSM adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class FgsmOptions(Options):
    """No random start, full step: what the literature shows to collapse."""

    step_ratio: float = option(
        1.0, help="length of the one step", unit="eps", low=0.0, source="Andriushchenko and Flammarion, released code"
    )
    attack_bn: str = bn_option("train", source="Andriushchenko and Flammarion, released code")
