"""Options of temporal ensembling."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, start_option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class TeOptions(Options):
    """Defaults are the authors'; epochs 90 and 150 of 200 became fractions of training."""

    base: str = option("pgd", help="method that is regularised", choices=("pgd", "trades"), source="released code")
    weight: float = option(
        300.0, help="final weight of the squared distance; 0: the base method alone", low=0.0, source="released code"
    )
    reduction: str = option(
        "mean_bk",
        help="squared distance: mean over batch and classes, or sum over classes and mean over the batch",
        choices=("mean_bk", "sum_k_mean_b"),
        source="released code; 300 there is 30 as a sum, for 10 classes",
    )
    eta: float = option(
        0.9, help="decay of the average: fraction that each visit keeps", low=0.0, high=0.999, source="released code"
    )
    start: float = option(
        0.45,
        help="fraction of training after which predictions are averaged and the weight ramps up",
        low=0.0,
        high=1.0,
        source="released code, epoch 90 of 200",
    )
    end: float = option(
        0.75,
        help="fraction of training after which the weight is final",
        low=0.0,
        high=1.0,
        source="released code, epoch 150 of 200",
    )
    te_target: str = option(
        "clean",
        help="base trades: prediction that is regularised; base pgd always uses the adversarial one",
        choices=("clean", "adv"),
        source="released code",
    )
    beta: float = option(6.0, help="base trades: weight of the divergence", low=0.0, source="released code")
    steps: int = steps_option(source="released code")
    step_ratio: float = step_option(source="released code")
    random_start: bool = start_option(source="released code", help="base pgd: start at a uniform point of the ball")
    attack_bn: str = bn_option("eval", source="released code")
    table_place: str = option(
        "auto",
        help="memory that holds the table",
        choices=("auto", "device", "host"),
        source="ours",
    )
