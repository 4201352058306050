"""The network and the part of CIFAR-10 for experiments that a CPU can make; the same for each script and test."""

from __future__ import annotations

import numpy as np
import torch

from timm_robust.data import Split, load_data

NETWORK = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
"""Arguments of `resnet18`: 0.3 million parameters."""


def subset(data: str, *, train: int, val: int, test: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """So many images drawn from all over each split; validation images are none of the training images.

    Args:
        data: CIFAR-10 as an image folder.
        train, val, test: numbers of images; all of a split that has fewer.

    Returns:
        for `train(data=...)`, by split: images uint8 [N, 3, H, W] and labels int64 [N].
    """
    bundle = load_data(data, seed=0)

    def some(split: Split, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = np.random.default_rng(0).permutation(len(split))[:n]
        return split.pixels[order].permute(0, 3, 1, 2).contiguous(), torch.from_numpy(split.labels[order])

    return {"train": some(bundle.train, train), "val": some(bundle.val, val), "test": some(bundle.test, test)}
