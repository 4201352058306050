"""Options of stochastic weight averaging."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, option


@dataclass(frozen=True, kw_only=True)
class SwaOptions(Options):
    """Defaults are those of KD-SWA (Chen et al., ICLR 2021)."""

    start: float = option(
        0.275,
        help="fraction of training after which weights are averaged, each epoch; before it the trained ones are saved",
        low=0.0,
        high=1.0,
        source="released code of KD-SWA: epoch 55 of 200",
    )
