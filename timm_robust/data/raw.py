"""Undecoded data: images, labels and class names as a source gives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timm_robust.data.images import Images, SomeImages

OBSERVER = "observer"
"""Folder of a distilled data set that holds the network by which its images were chosen."""


@dataclass(frozen=True)
class RawSplit:
    """Images as stored, and their class numbers, int64 [N]."""

    images: Images
    labels: np.ndarray

    def take(self, positions: np.ndarray) -> RawSplit:
        return RawSplit(SomeImages(self.images, positions), self.labels[positions])


@dataclass(frozen=True)
class Distilled:
    """Provenance of a distilled data set.

    Attributes:
        folder: folder of the data set.
        manifest: content of its manifest.json.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def teachers(self) -> dict[str, Path]:
        """Trained networks that come with the data, by the option of a method that learns from one."""
        return {OBSERVER: self.folder / OBSERVER}

    @property
    def observer_classes(self) -> list[int]:
        """For each class its number in the observer, as checked on images when the data was distilled."""
        return [entry["observer_class"] for entry in self.manifest["classes"]]


@dataclass(frozen=True)
class RawData:
    """The splits that a source offers; a single one beside training is the test split, and `val` is None.

    Distilled data has an image size of its own, and its provenance.
    """

    name: str
    class_names: tuple[str, ...] | None
    train: RawSplit
    val: RawSplit | None
    test: RawSplit
    image_size: int | None = None
    distilled: Distilled | None = None

    def splits(self) -> dict[str, RawSplit]:
        return {"train": self.train} | ({"val": self.val} if self.val else {}) | {"test": self.test}
