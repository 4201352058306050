"""Streamed images: worker processes decode and crop them, and send uint8."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from timm_robust.data.augment import SAMPLE, apply_box, inception_box, stream
from timm_robust.data.augmentations import FLIPPED
from timm_robust.data.batch import View
from timm_robust.data.images import ArrayImages, Images, Unreadable, available_cpus, fit
from timm_robust.errors import UserError
from timm_robust.utils.progress import Progress

PATIENCE = 100
"""Consecutive unreadable images after which reading is given up: something larger must be wrong."""


@dataclass(frozen=True)
class AugmentSettings:
    """Augmentation of training images; `pad` and `cutout` (side of the square) are in pixels at the image size."""

    augment: str
    pad: int
    pad_mode: str
    seed: int
    cutout: int = 0


@dataclass
class DecodedBatch:
    """Decoded batch, as a worker sends it.

    Attributes:
        pixels: uint8 [B, H, W, C].
        numbers: int64 [B, 7]: index, target, and the view's top, left, height, width and flip.
        broken: one sentence per image that could not be read.
        failure: message of a mistake that ends the run, if any.
    """

    pixels: Tensor
    numbers: Tensor
    broken: list[str]
    failure: str | None = None

    def pin_memory(self) -> DecodedBatch:
        """Called by the DataLoader, so that copies to the device need not wait."""
        return DecodedBatch(self.pixels.pin_memory(), self.numbers.pin_memory(), self.broken, self.failure)

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, View]:
        """Images uint8 [B, C, H, W] in channels_last strides, targets, index and view, on the device."""
        index, target, top, left, height, width, flip = self.numbers.t().contiguous().to(device, non_blocking=True)
        images = self.pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
        return images, target, index, View(top, left, height, width, flip.bool())


@dataclass
class _Sample:
    pixels: np.ndarray | None
    numbers: tuple[int, ...]
    broken: list[str]
    failure: str | None = None


class _Samples(Dataset[_Sample]):
    """One sample by (turn, position), where the turn is usually the epoch.

    Mistakes travel as text, because workers garble exceptions.
    """

    def __init__(self, images: Images, labels: np.ndarray, size: int, augmentation: AugmentSettings | None) -> None:
        self.images, self.labels, self.size, self.augmentation = images, labels, size, augmentation

    def __getitem__(self, key: tuple[int, int]) -> _Sample:
        turn, position = key
        broken: list[str] = []
        for attempt in range(min(PATIENCE, len(self.labels))):
            place = (position + attempt) % len(self.labels)
            try:
                image = self.images.read(place)
            except UserError as error:
                return _Sample(None, (), broken, str(error))
            except Unreadable as error:
                broken.append(error.sentence())
                if self.augmentation is None:
                    return _Sample(None, (), broken)  # evaluation counts no image twice
                continue
            pixels, view = self._view(image, turn, place)
            return _Sample(pixels, (place, int(self.labels[place]), *view), broken)
        return _Sample(None, (), broken, f"{len(broken)} images in a row cannot be read; {broken[-1]}")

    def _view(self, image: Image.Image, turn: int, place: int) -> tuple[np.ndarray, tuple[int, int, int, int, int]]:
        """Pixels uint8 [size, size, 3], and top, left, height, width, flip."""
        size, settings = self.size, self.augmentation
        if settings is None:
            return np.asarray(fit(image, size)), (0, 0, size, size, 0)
        random = stream(settings.seed, turn, SAMPLE, place)
        flip = bool(random.random() < 0.5) and settings.augment in FLIPPED
        if settings.augment == "inception":
            box = inception_box(*image.size, random)
            return np.asarray(apply_box(image, box, flip, size)), (*box, int(flip))
        top, left = (int(random.random() * (2 * settings.pad + 1)) for _ in range(2))
        border = (settings.pad, settings.pad)
        pixels = np.asarray(fit(image, size))
        if settings.pad_mode == "reflect":
            pixels = np.pad(pixels, (border, border, (0, 0)), mode="reflect")
        else:
            pixels = np.pad(pixels, (border, border, (0, 0)))
        pixels = pixels[top : top + size, left : left + size]
        return (pixels[:, ::-1] if flip else pixels), (top, left, size, size, int(flip))


def _collate(samples: list[_Sample]) -> DecodedBatch:
    pixels = [sample.pixels for sample in samples if sample.pixels is not None]
    numbers = [sample.numbers for sample in samples if sample.pixels is not None]
    return DecodedBatch(
        torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, 0, 0, 3, dtype=torch.uint8),
        torch.tensor(numbers, dtype=torch.int64).reshape(len(numbers), 7),
        [text for sample in samples for text in sample.broken],
        next((sample.failure for sample in samples if sample.failure), None),
    )


class _Batches(Sampler[list[tuple[int, int]]]):
    """Positions of an epoch's batches, set before each epoch; carries their turns to workers that outlive it."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.turns: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for part, turns in zip(self.parts, self.turns, strict=True):
            yield list(zip(turns.tolist(), part.tolist(), strict=True))


def worker_settings(workers: int | None, device: torch.device | str) -> dict[str, Any]:
    """DataLoader arguments for reading images.

    Args:
        workers: number of processes; None: one per core, at most 8.
        device: device that the batches go to.
    """
    workers = min(8, available_cpus()) if workers is None else workers
    return {
        "num_workers": workers,
        # A forked worker does not import the user's script again, so that needs no `if __name__ == "__main__"`.
        "multiprocessing_context": "fork" if workers and sys.platform == "linux" else None,
        "pin_memory": torch.device(device).type == "cuda",
        "generator": torch.Generator(),  # else it draws from the global stream
    }


class Stream:
    """Batches of streamed images.

    Args:
        images, labels: images and their class numbers, by position.
        size: side in pixels.
        augmentation: augmentation of training views; None: evaluation views.
        workers: number of processes that decode, which live as long as this object; default: one per core, at most 8.
        device: device that the batches go to.
    """

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        size: int,
        augmentation: AugmentSettings | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        settings = worker_settings(workers, device)
        self._sampler = _Batches()
        self._loader = DataLoader(
            _Samples(images, labels, size, augmentation),
            batch_sampler=self._sampler,
            collate_fn=_collate,
            persistent_workers=settings["num_workers"] > 0 and augmentation is not None,
            **settings,
        )
        self._warned: set[str] = set()

    def batches(self, parts: list[np.ndarray], turns: list[np.ndarray] | None = None) -> Iterator[DecodedBatch]:
        """Decoded batches of the samples at given positions; each unreadable image is warned about once.

        In training views the next readable image takes the place of an unreadable one, with its own index and label.
        Evaluation views leave it out.

        Args:
            parts: positions of each batch, int64 [B].
            turns: for each sample how often it has come before, which keys its training view; default: 0.

        Raises:
            UserError: an image of an unexpected type, or too many unreadable ones in a row.
        """
        self._sampler.parts = parts
        self._sampler.turns = [np.zeros_like(part) for part in parts] if turns is None else turns
        for batch in self._loader:
            for text in batch.broken:
                if text not in self._warned:
                    self._warned.add(text)
                    warnings.warn(text, stacklevel=2)
            if batch.failure:
                raise UserError(batch.failure)
            yield batch


def decode_all(
    images: Images, size: int, workers: int | None = None, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluation views of all images.

    Args:
        images: images to decode.
        size: side in pixels.
        workers: number of processes; default: one per core, at most 16, and none for a few images. Threads would wait
            for each other: decoding a small image is mostly Python.
        progress: callback after each part, in images.

    Returns:
        uint8 [M, size, size, 3] and the positions, int64 [M], of the M readable images; the others are warned about.
    """
    total = len(images)
    if isinstance(images, ArrayImages) and images.pixels.shape[1:3] == (size, size):
        return images.pixels, np.arange(total)
    if workers is None:
        workers = min(16, available_cpus()) if sys.platform == "linux" and total > 4096 else 0
    chunk = 256 if size <= 32 else 64  # under a megabyte, because shared memory may be short
    parts = [np.arange(start, min(start + chunk, total)) for start in range(0, total, chunk)]
    out, readable = np.empty((total, size, size, 3), np.uint8), np.zeros(total, bool)
    batches = Stream(images, np.zeros(total, np.int64), size, workers=workers).batches(parts)
    for part, batch in zip(parts, batches, strict=True):
        index = batch.numbers[:, 0].numpy()
        if len(index):
            out[index] = batch.pixels.numpy()
            readable[index] = True
        if progress:
            progress("reading images", int(part[-1]) + 1, total)
    kept = np.flatnonzero(readable)
    return (out if len(kept) == total else out[kept]), kept
