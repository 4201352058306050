"""Options of RDED, and of the student's method."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, step_option, steps_option


@dataclass(frozen=True, kw_only=True)
class RdedOptions(Options):
    """Defaults are those of the released scripts."""

    factor: int | None = option(
        None,
        help="patches along each side of an image; default 1 up to 64 pixels, 2 above",
        low=1,
        high=16,
        source="released scripts: 1 for CIFAR and Tiny-ImageNet, 2 for ImageNet and its subsets",
    )
    crops: int = option(5, help="random crops scored per real image", low=1, source="released scripts")
    pool: int = option(
        300,
        help="real images scored per class, drawn with the seed; all of a smaller class",
        low=1,
        source="released scripts (`mipc`)",
    )
    smallest: float = option(
        0.08, help="minimum area of a crop, as a fraction of the image's", low=0.0, high=1.0, source="released code"
    )
    robust: float = option(
        0.0,
        help="weight of the score under attack, for a robust observer; 0.5 prefers patches that keep their class",
        low=0.0,
        high=1.0,
        source="0 is the paper; the score under attack is ours",
    )
    attack_steps: int = option(5, help="PGD steps for the score under attack", low=1, source="ours: enough to rank")


@dataclass(frozen=True, kw_only=True)
class StudentOptions(Options):
    """Defaults are those of the released code with CutMix."""

    observer: str | None = option(
        None,
        help="run folder of the labelling network; default: the one stored with distilled data, else train one first",
        source="released code: the network that distilled",
    )
    temperature: float = option(
        20.0,
        help="distillation temperature",
        low=1e-3,
        source="released code with CutMix; 4 with mixup",
    )
    mix: str = option(
        "cutmix",
        help="mixing of images within a batch",
        choices=("cutmix", "mixup", "none"),
        source="released scripts",
    )
    factor: int | None = option(
        None,
        help="patches along each side, shuffled and cropped; default: that of the distilled data, else 1",
        low=1,
        high=16,
        source="released code",
    )
    adversarial: float = option(
        0.0,
        help="weight of the adversarial loss; 0: standard training",
        low=0.0,
        high=1.0,
        source="0 is the paper; 5/6 as in RSLAD (from memory)",
    )
    steps: int = steps_option(source="ours, as for pgd", help="attack steps per batch, with `adversarial` above 0")
    step_ratio: float = step_option(source="ours, as for pgd")
    attack_bn: str = bn_option("eval", source="ours")
