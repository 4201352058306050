"""Label noise: random training labels on purpose, to study how a method handles them (recipe setting `label_noise`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from timm_robust.data.bundle import DataBundle

STREAM = 0x1ABE1
"""Key that separates the draw from that of the validation split, which has the same seed."""


def redrawn(labels: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is redrawn, uniformly over all classes, so that one in `classes` of those stays true.

    Args:
        labels: int64 [N].
        share: share of the labels, in [0, 1]; their number is rounded.
        seed: random seed; equal results on every machine and for every NumPy release.

    Returns:
        new labels, int64 [N], and a mask of those redrawn, bool [N].
    """
    random = np.random.RandomState([seed % 2**32, STREAM])  # frozen by NumPy's promise, as Generator's stream is not
    drawn = np.zeros(len(labels), dtype=bool)
    drawn[random.permutation(len(labels))[: round(share * len(labels))]] = True
    return np.where(drawn, random.randint(classes, size=len(labels), dtype=np.int64), labels), drawn


def with_label_noise(bundle: DataBundle, share: float, seed: int) -> DataBundle:
    """The data with label noise on the training images; validation and test labels stay."""
    if not share:
        return bundle
    train = bundle.train
    labels, _ = redrawn(train.labels, bundle.num_classes, share, seed)
    return replace(bundle, train=replace(train, labels=labels, true_labels=train.labels))


def describe_noise(bundle: DataBundle, share: float) -> str:
    """Number of wrong labels, in one line."""
    train = bundle.train
    wrong = 0 if train.true_labels is None else int((train.labels != train.true_labels).sum())
    return (
        f"label noise {share:g}: {wrong} of {len(train)} training labels are wrong, {wrong / len(train):.1%} "
        f"(expected {share * (1 - 1 / bundle.num_classes):.1%}: the true class is drawn, too)"
    )
