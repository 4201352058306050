"""Order of batches that mix real and extra images in a fixed proportion; extra images do not lengthen an epoch.

As in Z. Wang et al., Better Diffusion Models Further Improve Adversarial Training, ICML 2023: a share of each batch is
generated images, and an epoch has as many steps as without them. Real and extra images each run through permutations of
their own, which continue from one epoch to the next, so no image repeats before all others were used. (The authors'
code draws the extra images with replacement, and starts a new permutation of the real ones in each epoch.)
"""

from __future__ import annotations

import numpy as np

from timm_robust.data.augment import EXTRA, REAL, stream
from timm_robust.errors import UserError


def extra_count(batch_size: int, share: float) -> int:
    """Number of extra images in a batch.

    Raises:
        UserError: none of them, or all.
    """
    count = round(share * batch_size)
    if not 0 < count < batch_size:
        low, high = 1 / batch_size, 1 - 1 / batch_size
        choice = f"a share from {low:.3g} to {high:.3g}" if batch_size > 1 else "a batch size of at least 2"
        raise UserError(
            f"extra_share {share:g} makes {count} of {batch_size} images in a batch extra ones: expected some of each "
            f"kind, {choice}"
        )
    return count


def count_steps(real: int, batch_size: int, world: int) -> int:
    """Batches per epoch on each of `world` processes: as many as all real images fill without extra ones."""
    return -(-real // (batch_size * world))


def endless(n: int, start: int, count: int, seed: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Part of an endless sequence of permutations of 0..n-1, computed without what precedes it.

    Args:
        start, count: position and length of the part.
        key: key of the random stream.

    Returns:
        the numbers, and the index of the permutation that each belongs to, int64 [count].
    """
    index, turn = np.empty(count, np.int64), np.empty(count, np.int64)
    done = 0
    while done < count:
        lap, place = divmod(start + done, n)
        part = stream(seed, lap, key).permutation(n)[place : place + count - done]
        index[done : done + len(part)], turn[done : done + len(part)] = part, lap
        done += len(part)
    return index, turn


def mixed_order(
    real: int, extra: int, batch_size: int, share: float, seed: int, epoch: int, shard: tuple[int, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Samples of one process's batches in an epoch: real ones first, then extra ones.

    All processes share one sequence of real and one of extra images and take their part of each global batch. All
    batches are full.

    Args:
        real, extra: number of images of each kind.
        shard: (rank, number of processes).

    Returns:
        for each batch the samples, extra ones numbered from `real` on, and how often each came before, int64 [B].
    """
    rank, world = shard
    steps, extras = count_steps(real, batch_size, world), extra_count(batch_size, share)
    index, turn = [], []
    for n, each, key, offset in ((real, batch_size - extras, REAL, 0), (extra, extras, EXTRA, real)):
        in_epoch = steps * world * each
        numbers, laps = endless(n, epoch * in_epoch, in_epoch, seed, key)
        index.append((numbers + offset).reshape(steps, world, each)[:, rank])
        turn.append(laps.reshape(steps, world, each)[:, rank])
    return list(np.concatenate(index, axis=1)), list(np.concatenate(turn, axis=1))
