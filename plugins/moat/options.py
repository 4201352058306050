"""Options of MOAT."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option

from .stages import parse_stages


@dataclass(frozen=True, kw_only=True)
class MoatOptions(Options):
    """All defaults are ours, since the paper's stages are unknown to us; `stages` can express others."""

    stages: str = option(
        "r1",
        help="r1: benign, fgsm-rs, pgd-3 in turn; r2: growing mixtures; or a list: 'benign:1, 0.5*fgsm + 0.5*pgd-7:2'",
        source="ours, one reading of the abstract",
    )
    unit: str = option("iteration", help="unit of the stages' lengths", choices=("iteration", "epoch"), source="ours")
    single_step_ratio: float = option(
        1.25,
        help="step size of fgsm-rs (fgsm: eps)",
        unit="eps",
        low=0.0,
        source="Wong et al., Fast is better than free",
    )
    multi_step_ratio: float = option(0.5, help="step size of pgd-K", unit="eps", low=0.0, source="ours")
    attack_bn: str = bn_option("eval", source="ours")

    def __post_init__(self) -> None:
        parse_stages(self.stages)
