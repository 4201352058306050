"""Training settings. The host owns them, so that methods are compared under equal conditions. Torch-free.

Precedence, later wins: the defaults here, the named recipe, the recommendation of the method, the user.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from timm_robust.data.augmentations import AUGMENTATIONS
from timm_robust.errors import UserError
from timm_robust.options import option

SCHEDULES = ("onecycle", "cyclic", "cosine", "step", "multistep", "piecewise", "constant")
ANSWERS = ("warn", "stop", "restore", "escalate")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings; `timm-robust recipes NAME` shows each with its meaning and the source of its value."""

    epochs: int = option(30, help="passes over the training set", low=1)
    batch_size: int = option(128, help="images per batch and process", low=1)
    accumulate: int = option(1, help="batches whose gradients are accumulated for each optimizer step", low=1)
    optimizer: str = option(
        "momentum", help="timm optimizer; `momentum` is SGD with plain momentum, `sgd` with Nesterov momentum"
    )
    lr: float = option(0.2, help="peak learning rate", low=0.0)
    lr_base_size: int = option(
        0,
        help="batch size that `lr` refers to; `lr` is scaled linearly to the actual images per optimizer step; 0: no "
        "scaling",
        unit="images",
        low=0,
    )
    momentum: float = option(0.9, help="momentum of SGD; beta1 of Adam and its kin", low=0.0, high=1.0)
    weight_decay: float = option(5e-4, help="weight decay; parameters of activations are never decayed", low=0.0)
    decay_norm_bias: bool = option(
        True, help="whether biases and normalisation parameters are decayed too, as in CIFAR recipes"
    )
    schedule: str = option("onecycle", help="learning-rate schedule", choices=SCHEDULES)
    warmup_epochs: float = option(
        0.0, help="linear warm-up of the rate from 0; cosine, step and multistep", unit="epochs", low=0
    )
    milestones: str = option(
        "0.5,0.75",
        help="multistep: where the rate drops, as fractions of the run such as 0.5 or 100/110; a drop begins with the "
        "last step before",
    )
    points: str = option(
        "0:0,0.4:1,1:0",
        help="piecewise: fraction of the run (0.4 or 40/100) and factor of the rate, linear in between; a fraction "
        "given twice is a jump",
    )
    lr_decay: float = option(0.1, help="step and multistep: factor of the rate at each drop", low=0.0, high=1.0)
    peak: float = option(
        0.3, help="onecycle and cyclic: where the rate peaks, as a fraction of the run", low=0.0, high=1.0
    )
    cycle_momentum: bool = option(
        True, help="onecycle: whether momentum cycles from 0.95 to 0.85 and back, torch's default"
    )
    cosine_span: float = option(
        1.0,
        help="cosine: length of the decay from the full rate to 0, in runs; 2 ends the run at half the rate",
        low=1.0,
    )
    label_smoothing: float = option(
        0.0,
        help="probability mass moved from the label to the other classes, in the training loss only",
        low=0.0,
        high=1.0,
    )
    augment: str = option(
        "crop-flip",
        help="augmentation, batched on the device; `inception` is for large images; `cutout` is crop-flip plus a "
        "square of zeros; `idbh` is `idbh-weak`",
        choices=AUGMENTATIONS,
    )
    cutout_size: float = option(
        0.4375, help="cutout: side of the square as a fraction of the image's; 14 of 32 pixels", low=0.0, high=1.0
    )
    pad: int = option(
        4, help="padding before the random crop, for 32-pixel images; scaled with the image size", unit="pixels", low=0
    )
    pad_mode: str = option("zeros", help="padding mode", choices=("zeros", "reflect"))
    eps_warmup_epochs: float = option(
        0.0,
        help="epochs over which the training radius grows linearly to eps; 0: eps from the start",
        unit="epochs",
        low=0,
    )
    clip_grad: float = option(0.0, help="largest gradient norm; 0: no clipping", low=0.0)
    ema: float = option(0.0, help="decay of the weights' exponential moving average; 0: none", low=0.0, high=1.0)
    check_attack: str = option("pgd-10-1", help="attack of the validation check after each epoch")
    check_examples: int = option(1000, help="number of images in the validation check; 0: all", unit="images", low=0)
    on_collapse: str = option(
        "warn",
        help="response to catastrophic overfitting: warn; stop; restore (roll back to the last sound epoch and "
        "continue with other random draws); escalate (roll back and continue with one more attack step)",
        choices=ANSWERS,
    )
    watch_every: int = option(
        0,
        help="steps between two probes for catastrophic overfitting; 0: as often as costs 2 % of the passes",
        unit="steps",
        low=0,
    )
    watch_examples: int = option(128, help="number of fixed training images in each probe", unit="images", low=1)
    stop_on_overfitting: int = option(
        0,
        help="patience of early stopping: epochs in a row with validation robust accuracy more than two standard "
        "errors below its best; longer than the gaps between drops of the rate, since accuracy may recover; 0: no "
        "early stopping",
        unit="epochs",
        low=0,
    )
    diagnose: int = option(
        0,
        help="number of training images, and of test images, measured after each epoch for robust overfitting; nothing "
        "is ever selected on the test images; 0: none",
        unit="images",
        low=0,
    )
    label_noise: float = option(
        0.0,
        help="fraction of training labels redrawn uniformly over all classes, from the seed, to measure memorisation; "
        "validation and test labels stay as they are",
        low=0.0,
        high=1.0,
    )


def require_peak(recipe: Recipe) -> None:
    """Refuses a peak at either end of a cycle.

    Raises:
        UserError: the schedule would divide by zero.
    """
    if recipe.peak in (0.0, 1.0) and recipe.schedule in ("onecycle", "cyclic"):
        raise UserError(f"recipe setting 'peak' is {recipe.peak:g}: expected a share between 0 and 1, both excluded")


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Recipe as plain values, for manifests."""
    return asdict(recipe)


def share(text: str) -> float:
    """Fraction of the run: `0.4`, or `44/110`, which falls on an epoch exactly.

    Raises:
        ValueError: neither.
    """
    top, slash, bottom = text.partition("/")
    if slash and not float(bottom):
        raise ValueError(text)
    return float(top) / float(bottom) if slash else float(top)


def share_pairs(text: str) -> list[tuple[float, float]]:
    """Values along the run: `0:1,60/110:2` as (fraction of the run, value) pairs.

    Raises:
        ValueError: not such pairs.
    """
    return [(share(key), float(value)) for key, value in (pair.split(":") for pair in text.split(","))]
