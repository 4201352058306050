"""Batches that loaders yield: a `Batch`, with the `View` that says how each image was cropped and flipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """Geometry of each sample's augmentation, so that per-sample perturbations can follow their image.

    Coordinates are pixels of the *source frame*: for small images the padded image (`pad` pixels on each side),
    for large ones the stored image. If pixels move in other ways too (`idbh`), a view has the flip only, and the
    loader's `frame_size` is None: nothing can be carried along.

    Attributes:
        top, left: int64 [B], upper left corner of the crop in the source frame.
        height, width: int64 [B], size of the crop in the source frame (the image size if nothing is resized).
        flip: bool [B], whether the crop was mirrored horizontally, after cropping.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor

    def __getitem__(self, part: slice) -> View:
        return View(*(field[part] for field in vars(self).values()))

    def to(self, device: torch.device) -> View:
        return View(*(field.to(device, non_blocking=True) for field in vars(self).values()))


@dataclass(frozen=True)
class Batch:
    """One batch on the run's device.

    Attributes:
        images: float32 [B, C, H, W] in [0, 1], channels last if the run is.
        targets: int64 [B], class numbers.
        index: int64 [B], position of each sample in the training set, stable across epochs, workers and resume; extra
            images are numbered after the real ones, and follow them in the batch.
        view: geometry of the augmentation; None for evaluation batches.
    """

    images: Tensor
    targets: Tensor
    index: Tensor
    view: View | None = None

    def __len__(self) -> int:
        return len(self.targets)
