"""Access to single images of arrays, files and map-style data sets, read as RGB; `fit` scales and crops them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from timm_robust.data.arrays import to_pixels
from timm_robust.errors import UserError
from timm_robust.threat import SMALL_IMAGE

CROP_SHARE = 0.875
"""Central crop on which larger images are evaluated: 224 of 256 pixels, as in timm and RobustBench."""


class Unreadable(Exception):
    """Image that cannot be decoded; the run continues without it."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(name, str(reason))
        self.name = name
        self.reason = str(reason)

    def sentence(self) -> str:
        return f"image {self.name} cannot be read and is left out: {self.reason}"


class Images(Protocol):
    """Images by position.

    `read` returns an RGB image and `shape` its (width, height); both raise `Unreadable`. `name` is the image's origin.
    """

    def __len__(self) -> int: ...

    def read(self, i: int) -> Image.Image: ...

    def shape(self, i: int) -> tuple[int, int]: ...

    def name(self, i: int) -> str: ...


@dataclass(frozen=True)
class ArrayImages:
    """Images held as uint8 [N, H, W, 3]."""

    pixels: np.ndarray
    origin: str

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])

    def shape(self, i: int) -> tuple[int, int]:
        return self.pixels.shape[2], self.pixels.shape[1]

    def name(self, i: int) -> str:
        return f"{self.origin}[{i}]"


@dataclass(frozen=True)
class FileImages:
    """Image files, named relative to `root`."""

    root: str
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> Image.Image:
        try:
            with Image.open(os.path.join(self.root, self.paths[i])) as image:
                return as_rgb(image)
        except Exception as error:  # decoders raise anything on broken files
            raise Unreadable(self.paths[i], error) from error

    def shape(self, i: int) -> tuple[int, int]:
        try:
            with Image.open(os.path.join(self.root, self.paths[i])) as image:
                return image.size
        except Exception as error:
            raise Unreadable(self.paths[i], error) from error

    def name(self, i: int) -> str:
        return self.paths[i]


@dataclass(frozen=True)
class DatasetImages:
    """Images of a map-style data set of (image, class number) pairs."""

    dataset: Any
    origin: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, i: int) -> Image.Image:
        try:
            item = self.dataset[i]
        except OSError as error:
            raise Unreadable(self.name(i), error) from error
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise UserError(f"{self.name(i)} is a {type(item).__name__}: expected a pair (image, class number)")
        if isinstance(item[0], Image.Image):
            return as_rgb(item[0])
        if not isinstance(item[0], (torch.Tensor, np.ndarray)):
            kind = type(item[0]).__name__
            raise UserError(f"the image of {self.name(i)} is a {kind}: expected a PIL image, a tensor or an array")
        return Image.fromarray(to_pixels(item[0][None], f"the pixels of {self.name(i)}")[0])

    def shape(self, i: int) -> tuple[int, int]:
        return self.read(i).size

    def name(self, i: int) -> str:
        return f"{self.origin}[{i}]"


@dataclass(frozen=True)
class SomeImages:
    """Images at `positions` of others, in that order."""

    images: Images
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, i: int) -> Image.Image:
        return self.images.read(int(self.positions[i]))

    def shape(self, i: int) -> tuple[int, int]:
        return self.images.shape(int(self.positions[i]))

    def name(self, i: int) -> str:
        return self.images.name(int(self.positions[i]))


@dataclass(frozen=True)
class ChainedImages:
    """Images of one source, followed by those of another."""

    first: Images
    second: Images

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def _at(self, i: int) -> tuple[Images, int]:
        return (self.first, i) if i < len(self.first) else (self.second, i - len(self.first))

    def read(self, i: int) -> Image.Image:
        images, place = self._at(i)
        return images.read(place)

    def shape(self, i: int) -> tuple[int, int]:
        images, place = self._at(i)
        return images.shape(place)

    def name(self, i: int) -> str:
        images, place = self._at(i)
        return images.name(place)


def as_rgb(image: Image.Image) -> Image.Image:
    """Decoded image in 8-bit RGB; 16-bit grey keeps its upper byte, where PIL would clip at 255."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def fit(image: Image.Image, size: int) -> Image.Image:
    """Evaluation view, [size, size]: the image as it is if it fits, else scaled (bilinear, antialias) and cropped.

    Small images keep their whole shorter side, larger ones lose a margin (`CROP_SHARE`).
    """
    width, height = image.size
    if width == height == size:
        return image
    side = size if size <= SMALL_IMAGE else round(size / CROP_SHARE)
    scale = side / min(width, height)
    width, height = max(side, round(width * scale)), max(side, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def native_size(images: Images, probes: int = 256) -> int | None:
    """Shorter side that all images share, judged by up to `probes` of them; None if they differ."""
    sizes = set()
    for i in np.unique(np.linspace(0, len(images) - 1, probes).astype(int)):
        try:
            sizes.add(images.shape(int(i)))
        except Unreadable:
            continue
        if len(sizes) > 1:
            return None
    return min(sizes.pop()) if sizes else None


def available_cpus() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
