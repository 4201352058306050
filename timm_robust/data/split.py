"""Splits of a data set and their order, the same on every machine and for every NumPy release."""

from __future__ import annotations

import numpy as np

from timm_robust.errors import UserError

# RandomState's stream is frozen by NumPy's promise (Generator's is not): splits must not move between releases.


def held_out_size(examples: int, classes: int) -> int:
    """Size of the validation split: 10 % of training, but no more than 1,000 images or two per class."""
    return min(examples // 10, max(1000, 2 * classes))


def hold_out(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A stratified split in two parts.

    Args:
        labels: int64 [N].
        size: size of the held-out part; it becomes larger if one image per class needs that.
        seed: random seed.

    Returns:
        positions kept, ascending, and positions held out, in random order. A class with a single image is kept.

    Raises:
        UserError: nothing can be held out.
    """
    counts = np.bincount(labels)
    if (counts < 2).all():
        raise UserError(
            f"training has {len(labels)} images and no class with two: expected at least two images per class, "
            "one to learn from and one to validate on"
        )
    wanted = size * counts / counts.sum()
    share = np.minimum(np.maximum(np.floor(wanted).astype(int), 1), np.maximum(counts - 1, 0))
    for number in np.argsort(np.floor(wanted) - wanted, kind="stable"):  # largest remainder first
        if share.sum() >= size:
            break
        share[number] += share[number] < counts[number] - 1
    random = np.random.RandomState(seed)
    members = [random.permutation(np.flatnonzero(labels == number)) for number in range(len(counts))]
    held = random.permutation(np.concatenate([own[:n] for own, n in zip(members, share, strict=True)]))
    return np.setdiff1d(np.arange(len(labels)), held), held


def evaluation_order(labels: np.ndarray) -> np.ndarray:
    """Order in which a validation or test split is kept.

    Splits grouped by class (every image folder is) get one fixed permutation, so that the first n images are a fair
    sample; it does not depend on the seed, so that "the first 1,000" means the same images in every run. All others
    keep their own order, on which published per-image results rely.
    """
    grouped = len(labels) > 1 and bool((np.diff(labels) >= 0).all())
    return np.random.RandomState(0).permutation(len(labels)) if grouped else np.arange(len(labels))
