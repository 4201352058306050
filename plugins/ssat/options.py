"""Options of self-supervised adversarial training and of its pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option

GUIDES = ("wrong-class", "balanced")
"""Ways of choosing what the attack steers by; see `timm_robust_plugins.ssat.pgd_knn`."""


@dataclass(frozen=True, kw_only=True)
class SsatOptions(Options):
    """Defaults are the authors' where the released notebooks show them; the file with their attack is lost."""

    encoder: str | None = option(
        None,
        help="folder of the run to start from, of any method; none runs ssat-pretrain first",
        source="paper: a pre-trained AMDIM encoder",
    )
    k: int = option(75, help="neighbours that vote", low=1, source="released code")
    normalise: bool = option(
        True, help="scale features to length 1 before they are compared", source="the lost module's name, dknnl2norm"
    )
    guide: str = option(
        "wrong-class",
        help="what the attack steers by: samples of the nearest wrong class, or as many of the right one to flee from",
        choices=GUIDES,
        source="guide mode 2 of the released call, reconstructed; balanced is the DkNN library's",
    )
    guides: int = option(300, help="samples that the attack steers by", low=2, source="released code")
    steps: int = option(10, help="attack steps per batch", low=1, source="released logs")
    step_ratio: float = option(
        0.17, help="length of a step", unit="eps", low=0.0, source="released STL-10 script: 0.005 at 0.03"
    )
    random_start: bool = option(True, help="start at a uniform point of the ball", source="released code")
    attack_bn: str = bn_option("eval", source="ours; the released notebook never leaves train mode")
    tclip: float = option(20.0, help="scores are clipped smoothly to this size", low=0.1, source="released code")
    index_refresh: int = option(
        10,
        help="features of all training images are taken anew after so many batches",
        unit="batches",
        low=1,
        source="ours; 1 in the released code: a pass over the training images for each batch",
    )
    checkpoint_every: int = option(
        25,
        help="the weights are kept, in steps/, after so many batches; 0 keeps best/ and last/ only",
        unit="batches",
        low=0,
        source="ours; 5 in the released code",
    )


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(Options):
    """Defaults are AMDIM's for CIFAR-10; above 32 pixels the crops are those that SSAT's authors take for STL-10."""

    tclip: float = option(20.0, help="scores are clipped smoothly to this size", low=0.1, source="AMDIM's code")
    penalty: float = option(0.05, help="weight of the mean squared score", low=0.0, source="AMDIM's code")
    translate: int = option(
        4,
        help="largest shift of a view, in pixels of 32-pixel images; scales with the size",
        unit="pixels",
        low=0,
        source="AMDIM's code",
    )
    min_scale: float | None = option(
        None,
        help="smallest part of the image that a view shows: 1 up to 32 pixels, 0.3 above, where views are not shifted",
        low=0.01,
        high=1.0,
        source="AMDIM's code for CIFAR-10, SSAT's for STL-10",
    )
    jitter: float | None = option(
        None,
        help="brightness, contrast and saturation change by this share, hue by half of it: 0.4 up to 32 pixels, else 0",
        low=0.0,
        high=1.0,
        source="AMDIM's code for CIFAR-10, SSAT's for STL-10",
    )
    grey: float | None = option(
        None,
        help="share of the views without colour: 0.25 up to 32 pixels, else 0",
        low=0.0,
        high=1.0,
        source="AMDIM's code for CIFAR-10, SSAT's for STL-10",
    )
