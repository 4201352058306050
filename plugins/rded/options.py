"""Options of RDED, and of the student's method."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class RdedOptions(Options):
    """Defaults are those of the released scripts."""

    factor: int | None = option(
        None,
        help="patches along a side of an image, which has the square of it; none is 1 up to 64 pixels and 2 above",
        low=1,
        high=16,
        source="released scripts: 1 for CIFAR and Tiny-ImageNet, 2 for ImageNet and its subsets",
    )
    crops: int = option(5, help="random crops scored of each real image", low=1, source="released scripts")
    pool: int = option(
        300,
        help="real images per class that are scored, drawn by the seed; all where a class has fewer",
        low=1,
        source="released scripts (`mipc`)",
    )
    smallest: float = option(
        0.08, help="share of the image's area that a crop has at least", low=0.0, high=1.0, source="released code"
    )
    robust: float = option(
        0.0,
        help="weight of the score under attack, for a robust observer; 0.5 keeps patches that stay what they are",
        low=0.0,
        high=1.0,
        source="0 is the paper; the score under attack is ours",
    )
    attack_steps: int = option(5, help="steps of PGD for that score", low=1, source="ours: enough to rank")


@dataclass(frozen=True, kw_only=True)
class StudentOptions(Options):
    """Defaults are those of the released code with CutMix."""

    observer: str | None = option(
        None,
        help="folder of the network that labels; none takes the one that came with distilled data, or trains one first",
        source="released code: the network that distilled",
    )
    temperature: float = option(
        20.0,
        help="what logits are divided by before they are compared",
        low=1e-3,
        source="released code with CutMix; 4 with mixup",
    )
    mix: str = option(
        "cutmix",
        help="how the images of a batch are mixed with each other",
        choices=("cutmix", "mixup", "none"),
        source="released scripts",
    )
    factor: int | None = option(
        None,
        help="patches along a side, which are shuffled and cropped; none is what the data was distilled with, else 1",
        low=1,
        high=16,
        source="released code",
    )
    adversarial: float = option(
        0.0,
        help="weight of the loss on adversarial images; 0 is standard training",
        low=0.0,
        high=1.0,
        source="0 is the paper; 5/6 as in RSLAD (from memory)",
    )
    steps: int = option(10, help="attack steps per batch, where there is an attack", low=1, source="ours, as for pgd")
    step_ratio: float = option(
        0.25,
        help="length of a step: 2/255 at 8/255, in proportion elsewhere",
        unit="eps",
        low=0.0,
        source="ours, as for pgd",
    )
    attack_bn: str = bn_option("eval", source="ours")
