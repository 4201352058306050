"""Data of a run: `load_data` makes raw splits a `DataBundle` with a validation split, one image size and statistics."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_robust.data.images import Images, SomeImages, native_size
from timm_robust.data.raw import Distilled, RawData, RawSplit
from timm_robust.data.read import read_source
from timm_robust.data.split import evaluation_order, held_out_size, hold_out
from timm_robust.data.streaming import decode_all
from timm_robust.errors import UserError
from timm_robust.threat import SMALL_IMAGE
from timm_robust.utils.progress import Progress

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images of one size.

    Attributes:
        images: images as stored, by position.
        labels: class numbers, int64 [N].
        image_size: side in pixels, after scaling.
        pixels: uint8 [N, size, size, 3] on the run's device; None if the images stream.
        true_labels: int64 [N], labels before label noise was added; None without noise.
    """

    images: Images
    labels: np.ndarray
    image_size: int
    pixels: Tensor | None = None
    true_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resident(self) -> bool:
        """Whether the decoded images live on the device."""
        return self.pixels is not None

    def name(self, position: int) -> str:
        """Origin of an image: its file relative to the data folder, or the split and position in the source."""
        return self.images.name(position)

    @property
    def source_names(self) -> list[str]:
        """`name` of each image, in order, so that per-image results can be traced."""
        return [self.images.name(i) for i in range(len(self))]


@dataclass(frozen=True, eq=False)
class Extra:
    """Extra or generated images, which fill a share of each training batch.

    Attributes:
        name: name as given, for records.
        split: the images; their `pixels` stay on the host, even if those of the real images are on the device.
        share: share of each batch, between 0 and 1.
    """

    name: str
    split: Split
    share: float


@dataclass(frozen=True, eq=False)
class DataBundle:
    """Data of a run.

    Attributes:
        name: name as given, for records.
        class_names: one name per class; their order gives the class numbers.
        image_size: side in pixels.
        mean, std: mean and standard deviation per channel, of the training images in [0, 1]; ImageNet's if images
            stream.
        train: training split. `Batch.index` counts its positions.
        val: validation split, held out from training or given by the source; for model selection, never for training.
        test: test split, for the final numbers only.
        val_indices: int64, positions of `val` among the readable images of the source's training split; None if the
            source gave `val` itself.
        extra: extra training images; `Batch.index` numbers them after `train`.
        distilled: provenance of `train`, if it was distilled from other data.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split
    val_indices: np.ndarray | None = None
    in_chans: int = 3
    extra: Extra | None = None
    distilled: Distilled | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Number of images that `Batch.index` counts, real and extra."""
        return len(self.train) + (len(self.extra.split) if self.extra else 0)


def load_data(
    data: Any,
    *,
    image_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    val_examples: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    resident_limit_bytes: int = 4 * 2**30,
    workers: int | None = None,
    test_only: bool = False,
    stream: bool = False,
    progress: Progress | None = None,
) -> DataBundle:
    """Training, validation and test splits of a data set.

    Args:
        data: "digits"; a folder `train/CLASS/*` with `val/CLASS/*`, `test/CLASS/*` or both; a `.npz` in MedMNIST's
            convention; a timm data set name such as "torch/cifar10"; a pair (train, test) or a dict with train, test
            and optionally val, of map-style data sets or of (images, labels) tensors. Images are uint8 or in [0, 1]. A
            folder of distilled data has the validation and test images of the data set that it was distilled from.
            A single split beside training is the test split, and validation is held out from training.
        image_size: side in pixels; default: the images' own if they share one, else 224.
        seed: random seed of the held-out validation split; the test split never depends on it.
        device: device that holds small images.
        val_examples: size of the held-out split, if the source gives no validation split; default: 10 % of training,
            at most 1,000 images or two per class.
        data_dir: root folder of timm data sets.
        download: download a missing timm data set.
        resident_limit_bytes: memory limit for images on the device; larger data sets stream, as do images above 64
            pixels.
        workers: number of processes that decode small images; default: one per core if there are many images.
        test_only: leave training and validation images undecoded, for evaluation; a folder then needs no train/.
        stream: stream all images, small ones too, for callers that read only a few.
        progress: callback while each split is decoded, in images.

    Raises:
        UserError: no such data, or data that no run can use.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size} is out of range: expected at least 1 pixel")
    raw = read_source(data, data_dir=data_dir, download=download, limit_bytes=resident_limit_bytes, test_only=test_only)
    class_names = _check_classes(raw)
    size = image_size or raw.image_size or native_size(raw.train.images) or 224
    splits = raw.splits()
    total = sum(len(part.labels) for part in splits.values())
    resident = not stream and size <= SMALL_IMAGE and total * size * size * 3 <= resident_limit_bytes
    pixels: dict[str, np.ndarray] = {}
    if resident:
        for key, part in [(key, part) for key, part in splits.items() if key == "test" or not test_only]:
            pixels[key], kept = decode_all(part.images, size, workers, progress)
            if not len(kept):
                raise UserError(f"the {key} split has no readable image among {len(part.labels)}")
            splits[key] = part if len(kept) == len(part.labels) else part.take(kept)

    def finish(key: str, positions: np.ndarray) -> Split:
        part = splits[key]
        decoded = torch.from_numpy(pixels[key][positions]).to(device) if key in pixels else None
        return Split(SomeImages(part.images, positions), part.labels[positions], size, decoded)

    test = finish("test", evaluation_order(splits["test"].labels))
    mean, std = channel_statistics(pixels["train"]) if "train" in pixels else (IMAGENET_MEAN, IMAGENET_STD)
    if "val" in splits:
        train = finish("train", np.arange(len(splits["train"].labels)))
        val, held = finish("val", evaluation_order(splits["val"].labels)), None
    else:
        kept, held = hold_out(splits["train"].labels, _val_size(splits["train"], len(class_names), val_examples), seed)
        train, val = finish("train", kept), finish("train", held)
    return DataBundle(raw.name, class_names, size, mean, std, train, val, test, held, distilled=raw.distilled)


def _val_size(train: RawSplit, classes: int, wanted: int | None) -> int:
    if wanted is None:
        return held_out_size(len(train.labels), classes)
    if not 1 <= wanted < len(train.labels):
        raise UserError(f"val_examples is {wanted}: expected 1 to {len(train.labels) - 1}, to leave some for training")
    return wanted


def _check_classes(raw: RawData) -> tuple[str, ...]:
    """Class names, after checking that the splits agree on the classes."""
    for key, part in raw.splits().items():
        if not len(part.labels):
            raise UserError(f"the {key} split of {raw.name!r} is empty: expected at least one image per class")
    learned = np.unique(raw.train.labels)
    names = raw.class_names or tuple(str(number) for number in range(int(learned[-1]) + 1))
    if learned[-1] >= len(names):
        raise UserError(f"training labels of {raw.name!r} go up to {learned[-1]}, but it names {len(names)} classes")
    if len(learned) < 2:
        raise UserError(f"training of {raw.name!r} has one class only, {names[learned[0]]!r}: expected at least two")
    if raw.class_names is None and len(names) > 2 * len(learned):
        raise UserError(
            f"training labels of {raw.name!r} go up to {learned[-1]}, but only {len(learned)} classes occur: "
            "number the classes from 0 without gaps"
        )
    for key, part in raw.splits().items():
        if len(strange := np.setdiff1d(part.labels, learned)):
            shown = names[strange[0]] if strange[0] < len(names) else str(strange[0])
            raise UserError(f"the {key} split of {raw.name!r} has class {shown!r}, which training lacks")
    return names


def channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in units of [0, 1].

    Args:
        pixels: uint8 [N, H, W, C].
    """
    levels = np.zeros((pixels.shape[-1], 256), np.int64)
    for start in range(0, len(pixels), 1024):
        chunk = pixels[start : start + 1024].reshape(-1, pixels.shape[-1])
        levels += np.stack([np.bincount(channel, minlength=256) for channel in chunk.T])
    share = levels / levels.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    # A constant channel must not divide by zero.
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())
