"""Options of FGSM-MEP."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import ONE_STEP, Options, bn_option, option, step_option


@dataclass(frozen=True, kw_only=True)
class FgsmMepOptions(Options):
    """Defaults are the authors' for CIFAR-10."""

    weight: float = option(
        10.0,
        help="weight of the squared distance between the logits before and after the step",
        low=0.0,
        source="released code",
    )
    smoothing: float = option(
        0.4,
        help="label smoothing in attack and loss: mass spread over the other classes",
        low=0.0,
        high=1.0,
        source="released code",
    )
    decay: float = option(0.3, help="decay of the gradient's momentum over epochs", low=0.0, source="released code")
    step_ratio: float = step_option(1.0, help=ONE_STEP, source="released code")
    reset_epochs: int = option(
        40,
        help="reset perturbations and momentum every N epochs; 10 on CIFAR-100",
        unit="epochs",
        low=1,
        source="released code",
    )
    table_dtype: str = option(
        "float16",
        help="data type of the two tables; float16 takes half the memory",
        choices=("float16", "float32"),
        source="ours; float32 in the released code",
    )
    table_place: str = option(
        "auto", help="memory that holds the tables", choices=("auto", "device", "host"), source="ours"
    )
    attack_bn: str = bn_option("train", source="released code")
