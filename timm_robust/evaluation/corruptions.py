"""Accuracy on common corruptions: CIFAR-10-C, CIFAR-100-C, ImageNet-C and folders in their formats.

D. Hendrycks, T. Dietterich, Benchmarking neural network robustness to common corruptions and perturbations, ICLR 2019,
arXiv:1903.12261. The protocol is RobustBench's: 15 corruptions in 5 severities, the mean over all 75.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from timm_robust.data.images import FileImages, Unreadable, fit
from timm_robust.data.sources import image_files, subfolders
from timm_robust.errors import UserError, unknown
from timm_robust.evaluation.accuracy import right
from timm_robust.evaluation.preconditions import device_of, require_eval
from timm_robust.utils.progress import Progress

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's mean error over the severities of ImageNet-C, as published with it; mCE is relative to these."""

CORRUPTIONS = tuple(ALEXNET_ERRORS)
"""The 15 corruptions of the benchmark, in the paper's order, without the four extra ones."""

SEVERITIES = (1, 2, 3, 4, 5)
LABELS = "labels.npy"


@dataclass(frozen=True)
class Corruptions:
    """Accuracies of one model.

    Attributes:
        data: folder of the images.
        n_examples: number of images of each corruption and severity.
        accuracies: by corruption, one in [0, 1] for each severity from 1 to 5.
        mce: mean corruption error relative to AlexNet, 1 being AlexNet's own; only on ImageNet-C with all 1,000 classes
            and every corruption.
    """

    data: str
    n_examples: int
    accuracies: dict[str, tuple[float, ...]]
    mce: float | None = None

    @property
    def mean(self) -> float:
        """Mean over all corruptions and severities, in [0, 1]; RobustBench ranks by it."""
        return float(np.mean(list(self.accuracies.values())))

    @property
    def by_severity(self) -> tuple[float, ...]:
        """Mean over the corruptions at each severity."""
        return tuple(float(one) for one in np.mean(list(self.accuracies.values()), axis=0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "n_examples": self.n_examples,
            "mean_accuracy": self.mean,
            "mce": self.mce,
            "by_severity": list(self.by_severity),
            "accuracy": {name: list(row) for name, row in self.accuracies.items()},
        }


class CorruptedImages(Protocol):
    """Corrupted images on disk.

    Attributes:
        root: folder.
        corruptions: names, in order.
        available: number of images of each severity.
        classes: class names of folders; empty for arrays.
    """

    root: Path
    corruptions: tuple[str, ...]
    available: int
    classes: tuple[str, ...]

    def read(self, name: str, severity: int, n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the first `n` images, uint8 [B, H, W, 3], and of their labels, int64 [B]."""


def open_corruptions(
    folder: str | Path,
    corruptions: Sequence[str] = CORRUPTIONS,
    *,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
) -> CorruptedImages:
    """Corrupted images of a folder.

    Args:
        folder: with CORRUPTION.npy, uint8 [5 n, H, W, 3] with the severities one after the other, and labels.npy; or
            with CORRUPTION/SEVERITY/CLASS/*, perhaps one folder deeper (noise/gaussian_noise/...).
        corruptions: names, all or some of the benchmark's.
        class_names: class names of the model in order, for folders of classes; default: their sorted names.
        image_size: side in pixels that images in files are scaled to; default: 224.

    Raises:
        UserError: an unknown corruption, or files that are missing or in another format.
    """
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS)
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"corruption data {str(folder)!r} is no folder: expected one with labels.npy or CORRUPTION/1/CLASS/*"
        )
    if (root / LABELS).is_file() or any(root.glob("*.npy")):
        return _Arrays(root, tuple(corruptions))
    return _Folders(root, tuple(corruptions), class_names, image_size or 224)


def corruption_accuracy(
    model: nn.Module,
    images: CorruptedImages,
    examples: int | None = None,
    *,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> Corruptions:
    """Accuracy under each corruption and severity.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        images: corrupted images; see `open_corruptions`.
        examples: number of images of each severity, in folders by file name, so that classes mix; default: all.
        batch_size: images per forward pass.
        progress: called after each severity.

    Raises:
        UserError: a model in train mode, files that cannot be read, labels that the model lacks, or too few images.
    """
    require_eval(model)
    n = images.available if examples is None else examples
    if not 1 <= n <= images.available:
        raise UserError(f"examples is {n}, {images.root} has {images.available} images for each severity")
    cells = [(name, severity) for name in images.corruptions for severity in SEVERITIES]
    found: dict[str, tuple[float, ...]] = {}
    for done, (name, severity) in enumerate(cells, 1):
        found[name] = (*found.get(name, ()), _accuracy(model, images.read(name, severity, n, batch_size), n))
        if progress:
            progress(f"{name} {severity}", done, len(cells))
    whole = len(found) == len(CORRUPTIONS) and len(images.classes) == 1000
    return Corruptions(str(images.root), n, found, mean_corruption_error(found) if whole else None)


def mean_corruption_error(accuracies: dict[str, tuple[float, ...]]) -> float:
    """mCE: the mean over the corruptions of the error relative to AlexNet's; 1 is as good as AlexNet, lower is better.

    Args:
        accuracies: by corruption, in [0, 1], for each severity.
    """
    errors = [(1 - float(np.mean(row))) / ALEXNET_ERRORS[name] for name, row in accuracies.items()]
    return float(np.mean(errors))


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], n: int) -> float:
    """Batches are uint8 [N, H, W, 3] and int64 [N]."""
    count = 0
    for x, y in batches:
        device = device_of(model, x)
        logits = model(x.to(device).permute(0, 3, 1, 2).float().div(255).contiguous())
        if int(y.max()) >= logits.shape[1]:
            raise UserError(f"the data has class number {int(y.max())}, the model has only {logits.shape[1]} classes")
        count += int(right(logits, y.to(device)).sum())
    return count / n


class _Arrays:
    """CIFAR-10-C and data in its format."""

    def __init__(self, root: Path, corruptions: tuple[str, ...]) -> None:
        self.root, self.corruptions = root, corruptions
        self.classes: tuple[str, ...] = ()
        _require_all(
            root, [name for name in (LABELS, *(f"{one}.npy" for one in corruptions)) if not (root / name).is_file()]
        )
        self.labels = self._load(LABELS)
        if self.labels.ndim != 1 or len(self.labels) % len(SEVERITIES):
            raise UserError(
                f"{root / LABELS} has shape {self.labels.shape}: expected one label for each image, 5 n of them"
            )
        self.available = len(self.labels) // len(SEVERITIES)

    def _load(self, name: str) -> np.ndarray:
        try:
            return np.load(self.root / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.root / name} cannot be read, it may be truncated: {error}") from error

    def read(self, name: str, severity: int, n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        pixels = self._load(f"{name}.npy")
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or len(pixels) != len(self.labels):
            raise UserError(
                f"{self.root / name}.npy is {pixels.dtype} {list(pixels.shape)}: expected uint8 "
                f"[{len(self.labels)}, H, W, 3], the severities one after the other"
            )
        begin = (severity - 1) * self.available
        for start in range(begin, begin + n, batch_size):
            part = slice(start, min(start + batch_size, begin + n))
            yield torch.from_numpy(np.array(pixels[part])), torch.from_numpy(self.labels[part].astype(np.int64))


class _Folders:
    """ImageNet-C and data in its format."""

    def __init__(
        self, root: Path, corruptions: tuple[str, ...], class_names: Sequence[str] | None, image_size: int
    ) -> None:
        self.root, self.corruptions, self.size = root, corruptions, image_size
        self.places = {one: self._place(one) for one in corruptions}
        _require_all(root, [f"{one}/" for one, place in self.places.items() if place is None])
        missing = [
            f"{place}/{s}/"
            for place in self.places.values()
            for s in SEVERITIES
            if not (root / str(place) / str(s)).is_dir()
        ]
        _require_all(root, missing)
        first = f"{self.places[corruptions[0]]}/{SEVERITIES[0]}"
        self.classes = tuple(class_names or sorted(subfolders(root / first)))
        self.available = len(self._files(first))

    def _place(self, name: str) -> str | None:
        if (self.root / name).is_dir():
            return name
        deeper = [one for one in sorted(subfolders(self.root)) if (self.root / one / name).is_dir()]
        return f"{deeper[0]}/{name}" if deeper else None

    def _files(self, folder: str) -> list[tuple[str, int]]:
        """Files and their class numbers, in the order of the file names."""
        found = []
        for label in sorted(subfolders(self.root / folder)):
            if label not in self.classes:
                raise unknown(
                    f"class folder in {folder} of {str(self.root)!r}", label, self.classes, hint="the model lacks it"
                )
            found += [(path, self.classes.index(label)) for path in image_files(self.root, f"{folder}/{label}")]
        return sorted(found, key=lambda one: (Path(one[0]).name, one[1]))

    def read(self, name: str, severity: int, n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        folder = f"{self.places[name]}/{severity}"
        files = self._files(folder)
        if len(files) < n:
            raise UserError(
                f"{self.root / folder} has {len(files)} images: expected at least {n}, as in the first severity"
            )
        images = FileImages(str(self.root), [path for path, _ in files[:n]])
        labels = torch.tensor([label for _, label in files[:n]])
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            try:
                pixels = [np.asarray(fit(images.read(i), self.size)) for i in range(start, stop)]
            except Unreadable as error:
                raise UserError(f"image {self.root / error.name} cannot be read: {error.reason}") from error
            yield torch.from_numpy(np.stack(pixels)), labels[start:stop]


def _require_all(root: Path, missing: Sequence[str]) -> None:
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(
            f"{root} lacks {shown}: expected all {len(CORRUPTIONS)} corruptions as CIFAR-10-C or ImageNet-C have them"
        )
