"""Image folders for the data tests: small generated ones, and real CIFAR-10 where the machine has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Make = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> Make:
    """Writes an image folder; each image has its own content, in which its class's channel is brightest."""

    def make(splits: dict[str, int], size: int = 12, classes: tuple[str, ...] = ("ant", "bee", "cow")) -> Path:
        for split, per_class in splits.items():
            for number, name in enumerate(classes):
                folder = tmp_path / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(per_class):
                    random = np.random.RandomState(1000 * number + i + sum(map(ord, split)))
                    pixels = random.randint(0, 200, (size, size, 3), dtype=np.uint8)
                    pixels[..., number % 3] += 50
                    Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        return tmp_path

    return make
