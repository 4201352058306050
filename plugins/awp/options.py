"""Options of adversarial weight perturbation."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, option


@dataclass(frozen=True, kw_only=True)
class AwpOptions(Options):
    """Defaults are those of the released code for TRADES; for PGD training it uses gamma 0.01 from the first epoch."""

    gamma: float = option(
        0.005,
        help="norm of each layer's perturbation, relative to the norm of its weights",
        low=0.0,
        source="released code, TRADES",
    )
    start: float = option(
        0.05,
        help="fraction of training after which weights are perturbed",
        low=0.0,
        high=1.0,
        source="released code, TRADES: epoch 10 of 200",
    )
