"""Options of self-guided label refinement."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class SglrOptions(Options):
    """Defaults are those of the released code, whose start of 90 epochs of 200 became a share of the run."""

    base: str = option(
        "pgd", help="the method whose labels are refined", choices=("pgd", "trades", "mart"), source="released code"
    )
    alpha: float = option(
        0.9,
        help="share of a label that each visit keeps; 1 refines nothing",
        low=0.0,
        high=1.0,
        source="released code",
    )
    adv_weight: float = option(
        0.8,
        help="share of the adversarial prediction in what is mixed in; the clean one has the rest",
        low=0.0,
        high=1.0,
        source="released code, a literal",
    )
    start: float = option(
        0.45,
        help="share of the run where refinement begins",
        low=0.0,
        high=1.0,
        source="released scripts: epoch 90 of 200, ten before the rate first drops",
    )
    r: float = option(
        1.0,
        help="share of the refined label in the target; below 1 the given label keeps the rest for good",
        low=0.0,
        high=1.0,
        source="1 is the released code; the paper interpolates, its value is not known to us",
    )
    reweight: bool = option(
        False,
        help="weigh each sample by the largest entry of its label, as self-adaptive training does",
        source="Huang et al., NeurIPS 2020",
    )
    clean_bn: str = option(
        "train",
        help="BatchNorm in the extra clean forward of base pgd: train moves its statistics, eval uses them",
        choices=("train", "eval"),
        source="released code",
    )
    beta: float | None = option(
        None,
        help="weight of the divergence in base trades and mart: 6 and 5",
        low=0.0,
        source="released codes of TRADES and of MART for ResNet-18",
    )
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
        help="where the labels live: auto, device or host memory",
        choices=("auto", "device", "host"),
        source="ours",
    )
