"""Options of self-guided label refinement."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, start_option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class SglrOptions(Options):
    """Defaults are those of the released code; its start at epoch 90 of 200 became a fraction of training."""

    base: str = option(
        "pgd", help="method whose labels are refined", choices=("pgd", "trades", "mart"), source="released code"
    )
    alpha: float = option(
        0.9,
        help="fraction of a label that each visit keeps; 1: no refinement",
        low=0.0,
        high=1.0,
        source="released code",
    )
    adv_weight: float = option(
        0.8,
        help="weight of the adversarial prediction in the refinement; the clean prediction has the rest",
        low=0.0,
        high=1.0,
        source="released code, a literal",
    )
    start: float = option(
        0.45,
        help="fraction of training after which labels are refined",
        low=0.0,
        high=1.0,
        source="released scripts: epoch 90 of 200, ten before the rate first drops",
    )
    r: float = option(
        1.0,
        help="weight of the refined label in the target; the given label has the rest",
        low=0.0,
        high=1.0,
        source="1 is the released code; the paper interpolates, its value is not known to us",
    )
    reweight: bool = option(
        False,
        help="weight each sample by the largest entry of its label, as in self-adaptive training",
        source="Huang et al., NeurIPS 2020",
    )
    clean_bn: str = option(
        "train",
        help="base pgd: BatchNorm in the extra clean forward pass; train updates running statistics, eval uses them",
        choices=("train", "eval"),
        source="released code",
    )
    beta: float | None = option(
        None,
        help="base trades or mart: weight of the divergence; default 6 or 5",
        low=0.0,
        source="released codes of TRADES and of MART for ResNet-18",
    )
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
