"""Undecoded data: images, labels and class names as a source gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from timm_robust.data.images import Images, SomeImages

if TYPE_CHECKING:
    from timm_robust.data.distilled import Distilled


@dataclass(frozen=True)
class RawSplit:
    """Images as they are stored, and their class numbers, int64 [N]."""

    images: Images
    labels: np.ndarray

    def take(self, positions: np.ndarray) -> RawSplit:
        return RawSplit(SomeImages(self.images, positions), self.labels[positions])


@dataclass(frozen=True)
class RawData:
    """The splits that a source offers; a single one beside training is the test, and `val` is None.

    Distilled data has an image size of its own, and says where it comes from.
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
