"""Recipes: the training settings that the host owns, so that defenses are compared fairly. Torch-free.

A setting comes from, later wins: the defaults here, a named preset, what the defense recommends, the user.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from timm_robust.data.augmentations import AUGMENTATIONS
from timm_robust.options import option

SCHEDULES = ("onecycle", "cyclic", "cosine", "step", "multistep", "piecewise", "constant")
ANSWERS = ("warn", "stop", "restore", "escalate")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings. `timm-robust recipes` explains each, and where a preset's values come from."""

    epochs: int = option(30, help="passes over the training set", low=1)
    batch_size: int = option(128, help="images per optimizer step and process", low=1)
    accumulate: int = option(1, help="batches whose gradients are added before each optimizer step", low=1)
    optimizer: str = option("momentum", help="any timm optimizer: `momentum` is plain SGD, `sgd` is SGD with Nesterov")
    lr: float = option(0.2, help="largest learning rate", low=0.0)
    lr_base_size: int = option(
        0, help="`lr` is for so many images per optimizer step, and scaled to the run's; 0 takes it as it is", low=0
    )
    momentum: float = option(0.9, help="momentum of SGD (beta1 elsewhere)", low=0.0, high=1.0)
    weight_decay: float = option(5e-4, help="decay of all parameters except activations' own", low=0.0)
    decay_norm_bias: bool = option(True, help="decay biases and normalisation parameters too, as CIFAR recipes do")
    schedule: str = option("onecycle", help="learning-rate schedule", choices=SCHEDULES)
    warmup_epochs: float = option(
        0.0, help="linear warm-up from 0 before cosine, step or multistep", unit="epochs", low=0
    )
    milestones: str = option(
        "0.5,0.75",
        help="multistep: where the rate falls, on the last step before; shares of the run such as 0.5 or 100/110",
    )
    points: str = option(
        "0:0,0.4:1,1:0",
        help="piecewise: share of the run (0.4 or 40/100) and factor of the rate, straight in between; a share given "
        "twice is a jump",
    )
    lr_decay: float = option(0.1, help="step and multistep: factor at each fall", low=0.0, high=1.0)
    peak: float = option(
        0.3, help="onecycle and cyclic: where the rate peaks, as a share of the run", low=0.0, high=1.0
    )
    cycle_momentum: bool = option(
        True, help="onecycle: momentum moves from 0.95 to 0.85 and back, as torch does by default"
    )
    cosine_span: float = option(
        1.0, help="cosine: length of its fall from all to nothing, in runs; 2 ends a run at half the rate", low=1.0
    )
    label_smoothing: float = option(
        0.0, help="mass that leaves the label for the other classes, in the update's loss only", low=0.0, high=1.0
    )
    augment: str = option(
        "crop-flip",
        help="batched augmentation of small images; `inception` for large ones; `cutout` is crop-flip and a square of "
        "zeros; `idbh` is `idbh-weak`",
        choices=AUGMENTATIONS,
    )
    cutout_size: float = option(
        0.4375, help="side of cutout's square, as a share of the image's: 14 of 32 pixels", low=0.0, high=1.0
    )
    pad: int = option(
        4, help="padding before the random crop of 32-pixel images, scaled with the size", unit="pixels", low=0
    )
    pad_mode: str = option("zeros", help="what the padding holds", choices=("zeros", "reflect"))
    eps_warmup_epochs: float = option(
        0.0, help="the radius trained against grows over so many epochs; 0 starts with all of it", unit="epochs", low=0
    )
    clip_grad: float = option(0.0, help="largest gradient norm; 0 clips nothing", low=0.0)
    ema: float = option(0.0, help="decay of the weights' exponential moving average; 0 keeps none", low=0.0, high=1.0)
    check_attack: str = option("pgd-10-1", help="attack of the check on the validation split after each epoch")
    check_examples: int = option(1000, help="validation images in that check; 0 takes all", low=0)
    on_collapse: str = option(
        "warn",
        help="catastrophic overfitting: warn; stop; restore the last sound epoch and go on with other draws; escalate: "
        "restore it and go on with one attack step more",
        choices=ANSWERS,
    )
    watch_every: int = option(
        0,
        help="steps between two looks at fixed training images for catastrophic overfitting; 0 for 2 % of the passes",
        unit="steps",
        low=0,
    )
    watch_examples: int = option(128, help="images in such a look", low=1)
    stop_on_overfitting: int = option(
        0,
        help="end the run when validation robust accuracy has been below its best by more than two standard errors for "
        "so many epochs in a row; it may come back while the rate still falls, so outlast that; 0 never ends it",
        unit="epochs",
        low=0,
    )
    diagnose: int = option(
        0,
        help="so many training and as many test images are measured after each epoch, to see robust overfitting; test "
        "images are watched only, nothing is ever selected by them; 0 measures nothing",
        unit="images",
        low=0,
    )
    label_noise: float = option(
        0.0,
        help="share of the training labels redrawn uniformly over all classes, by the seed, to see what is memorised; "
        "validation and test images keep theirs",
        low=0.0,
        high=1.0,
    )


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for manifests."""
    return asdict(recipe)


def share(text: str) -> float:
    """A share of the run: `0.4`, or `44/110`, which falls on an epoch exactly.

    Raises:
        ValueError: neither.
    """
    top, slash, bottom = text.partition("/")
    if slash and not float(bottom):
        raise ValueError(text)
    return float(top) / float(bottom) if slash else float(top)


def share_pairs(text: str) -> list[tuple[float, float]]:
    """What changes along the run: `0:1,60/110:2` as shares of the run with a number each.

    Raises:
        ValueError: not such pairs.
    """
    return [(share(key), float(value)) for key, value in (pair.split(":") for pair in text.split(","))]
