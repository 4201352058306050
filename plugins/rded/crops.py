"""Random square crops of real images, cut by the worker processes that read the images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_robust.data import Split
from timm_robust.data.augment import apply_box, inception_box, stream
from timm_robust.data.images import Unreadable
from timm_robust.data.streaming import worker_settings
from timm_robust.errors import UserError

CROPS = 101
"""Key of the random stream of crops; distinct from the loaders'."""


@dataclass
class Crops:
    """Crops of a batch of images.

    Attributes:
        places: int64 [B], positions of the images in the split.
        boxes: int64 [B, M, 4], top, left, height and width in pixels of the stored image.
        pixels: uint8 [B, M, size, size, 3].
        broken: one sentence for each unreadable image, which is left out.
        failure: message of a UserError, since workers garble exceptions.
    """

    places: Tensor
    boxes: Tensor
    pixels: Tensor
    broken: list[str] = field(default_factory=list)
    failure: str | None = None

    def pin_memory(self) -> Crops:
        """Called by the DataLoader, so that copies to the device are asynchronous."""
        return Crops(self.places, self.boxes, self.pixels.pin_memory(), self.broken, self.failure)


class _Reader(Dataset[Crops]):
    """Data set of crops, whose boxes depend on (seed, position) only: not on batches, workers or processes."""

    def __init__(self, split: Split, size: int, count: int, smallest: float, seed: int) -> None:
        self.split, self.size, self.count, self.smallest, self.seed = split, size, count, smallest, seed

    def __getitem__(self, place: int) -> Crops:
        shape = (0, self.count, self.size, self.size, 3)
        none = Crops(torch.empty(0).long(), torch.empty(0, self.count, 4).long(), torch.empty(shape).byte())
        try:
            image = self.split.images.read(place)
        except Unreadable as error:
            none.broken = [error.sentence()]
            return none
        except UserError as error:
            none.failure = str(error)
            return none
        random = stream(self.seed, 0, CROPS, place)
        boxes = [inception_box(*image.size, random, smallest=self.smallest, longest=1.0) for _ in range(self.count)]
        pixels = np.stack([np.asarray(apply_box(image, box, False, self.size)) for box in boxes])
        return Crops(torch.tensor([place]), torch.tensor([boxes]), torch.from_numpy(pixels[None]))


def _collate(read: list[Crops]) -> Crops:
    return Crops(
        *(torch.cat([getattr(one, name) for one in read]) for name in ("places", "boxes", "pixels")),
        [text for one in read for text in one.broken],
        next((one.failure for one in read if one.failure), None),
    )


def read_crops(
    split: Split,
    parts: Sequence[np.ndarray],
    *,
    size: int,
    count: int,
    smallest: float,
    seed: int,
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Crops]:
    """Crops of the images in each of `parts`, in order; unreadable images are skipped with a warning.

    Args:
        split: real images.
        parts: int64 [B] each, positions in the split.
        size: side of a crop after resizing (bilinear, antialias), in pixels.
        count: crops per image.
        smallest: minimum area of a crop as a fraction of the image's; crops are square.
        seed: random seed.
        workers, device: as in the loaders.

    Raises:
        UserError: an image of the wrong kind.
    """
    loader = DataLoader(
        _Reader(split, size, count, smallest, seed),
        batch_sampler=[part.tolist() for part in parts],
        collate_fn=_collate,
        **worker_settings(workers, device),
    )
    for crops in loader:
        for text in crops.broken:
            warnings.warn(text, stacklevel=2)
        if crops.failure:
            raise UserError(crops.failure)
        yield crops
