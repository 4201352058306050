"""Options of temporal ensembling."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class TeOptions(Options):
    """Defaults are the authors'; epochs 90 and 150 of 200 became shares of the run."""

    base: str = option("pgd", help="the method that is regularised", choices=("pgd", "trades"), source="released code")
    weight: float = option(
        300.0, help="final weight of the squared distance; 0 is the base itself", low=0.0, source="released code"
    )
    reduction: str = option(
        "mean_bk",
        help="of the squared distance: mean over batch and classes, or sum over classes and mean over the batch",
        choices=("mean_bk", "sum_k_mean_b"),
        source="released code; 300 there is 30 as a sum, for 10 classes",
    )
    eta: float = option(
        0.9, help="share of the average that each visit keeps", low=0.0, high=0.999, source="released code"
    )
    start: float = option(
        0.45,
        help="share of the run where averaging and the weight begin",
        low=0.0,
        high=1.0,
        source="released code, epoch 90 of 200",
    )
    end: float = option(
        0.75,
        help="share of the run from which the weight is full",
        low=0.0,
        high=1.0,
        source="released code, epoch 150 of 200",
    )
    te_target: str = option(
        "clean",
        help="base trades: whose prediction the loss regularises; base pgd has the adversarial one only",
        choices=("clean", "adv"),
        source="released code",
    )
    beta: float = option(6.0, help="base trades: weight of the divergence", low=0.0, source="released code")
    steps: int = option(10, help="attack steps per batch", low=1, source="released code")
    step_ratio: float = option(
        0.25,
        help="length of a step: 2/255 at 8/255, in proportion elsewhere",
        unit="eps",
        low=0.0,
        source="released code",
    )
    random_start: bool = option(True, help="base pgd: start at a uniform point of the ball", source="released code")
    attack_bn: str = bn_option("eval", source="released code")
    table_place: str = option(
        "auto",
        help="where the averages live: auto, device or host memory",
        choices=("auto", "device", "host"),
        source="ours",
    )
