"""Options of self-supervised adversarial training and of its pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option, start_option, step_option, steps_option

GUIDES = ("wrong-class", "balanced")
"""Choices of guide samples for the attack; see `timm_robust_plugins.ssat.pgd_knn`."""


@dataclass(frozen=True, kw_only=True)
class SsatOptions(Options):
    """Defaults are the authors' where the released notebooks show them; their attack was never released."""

    encoder: str | None = option(
        None,
        help="run folder to start from, of any method; default: run ssat-pretrain first",
        source="paper: a pre-trained AMDIM encoder",
    )
    k: int = option(75, help="number of neighbours that vote", low=1, source="released code")
    normalise: bool = option(
        True, help="normalise features to length 1", source="name of the missing module, dknnl2norm"
    )
    guide: str = option(
        "wrong-class",
        help="guide samples: the nearest wrong class only, or as many of the right class to move away from",
        choices=GUIDES,
        source="guide mode 2 of the released call, reconstructed; balanced: the DkNN library",
    )
    guides: int = option(300, help="number of guide samples", low=2, source="released code")
    steps: int = steps_option(source="released logs")
    step_ratio: float = step_option(0.17, help="step size", source="released STL-10 script: 0.005 at 0.03")
    random_start: bool = start_option(source="released code")
    attack_bn: str = bn_option("eval", source="ours; the released notebook stays in train mode")
    tclip: float = option(20.0, help="bound of the scores, which are clipped smoothly", low=0.1, source="released code")
    index_refresh: int = option(
        10,
        help="recompute the features of all training images every N batches",
        unit="batches",
        low=1,
        source="ours; 1 in the released code: a pass over the training images for each batch",
    )
    checkpoint_every: int = option(
        25,
        help="save the weights to steps/ every N batches; 0: best/ and last/ only",
        unit="batches",
        low=0,
        source="ours; 5 in the released code",
    )


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(Options):
    """Defaults are AMDIM's for CIFAR-10; above 32 pixels the crops are those of SSAT's authors for STL-10."""

    tclip: float = option(20.0, help="bound of the scores, which are clipped smoothly", low=0.1, source="AMDIM's code")
    penalty: float = option(0.05, help="weight of the mean squared score", low=0.0, source="AMDIM's code")
    translate: int = option(
        4,
        help="maximum shift of a view at 32 pixels; scales with the image size",
        unit="pixels",
        low=0,
        source="AMDIM's code",
    )
    min_scale: float | None = option(
        None,
        help="minimum area of a view, as a fraction of the image; default 1 up to 32 pixels, 0.3 (and no shift) above",
        low=0.01,
        high=1.0,
        source="AMDIM's code for CIFAR-10, SSAT's for STL-10",
    )
    jitter: float | None = option(
        None,
        help="maximum change of brightness, contrast, saturation; hue half of it; default 0.4 up to 32 pixels, else 0",
        low=0.0,
        high=1.0,
        source="AMDIM's code for CIFAR-10, SSAT's for STL-10",
    )
    grey: float | None = option(
        None,
        help="fraction of greyscale views; default 0.25 up to 32 pixels, else 0",
        low=0.0,
        high=1.0,
        source="AMDIM's code for CIFAR-10, SSAT's for STL-10",
    )
