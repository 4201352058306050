"""Reader of timm data sets such as `torch/cifar10` or `hfds/USER/NAME`, through `timm.data.create_dataset`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from torch.utils.data import IterableDataset

from timm_robust.data.raw import RawData, RawSplit
from timm_robust.data.sources import from_dataset, raw_data
from timm_robust.errors import UserError, unknown

PACKAGES = {
    "torch": ("torchvision",),
    "hfds": ("datasets",),
    "hfids": ("datasets",),
    "tfds": ("tensorflow", "tensorflow_datasets"),
    "wds": ("webdataset",),
}
"""Prefix of a timm data set name -> the packages that read it."""

# torchvision's sets have one split beside training; timm answers for it to any other name than the training split's.
TORCH_SETS = {
    "torch/cifar10": "test",
    "torch/cifar100": "test",
    "torch/mnist": "test",
    "torch/kmnist": "test",
    "torch/fashion_mnist": "test",
    "torch/qmnist": "test",
    "torch/imagenet": "validation",
    "torch/inaturalist": "validation",
    "torch/places365": "validation",
}


def is_timm_name(name: str) -> bool:
    """Whether the name has one of timm's prefixes."""
    prefix, slash, _ = name.partition("/")
    return bool(slash) and prefix.lower() in PACKAGES


def from_timm(
    name: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False, limit_bytes: int = 4 * 2**30
) -> RawData:
    """Splits of a timm data set.

    Args:
        name: name with its prefix.
        data_dir: root folder; default: the library's own, for `torch/` ~/.cache/timm_robust.
        download: download a missing data set (`hfds/` and `hfids/` always do).
        limit_bytes: memory limit for data sets that can only be read from start to end.

    Raises:
        UserError: unknown name, missing package, or data that cannot be read.
    """
    prefix = name.partition("/")[0].lower()
    for package in PACKAGES[prefix]:
        if importlib.util.find_spec(package) is None:
            pip = package.replace("_", "-")
            raise UserError(f"data {name!r} needs the package {pip}, which is not installed: pip install {pip}")
    others: tuple[str, ...] = ("validation", "test")
    if prefix == "torch":
        if name.lower() not in TORCH_SETS:
            raise unknown("data set", name, TORCH_SETS)
        others = (TORCH_SETS[name.lower()],)
        data_dir = data_dir or Path("~/.cache/timm_robust").expanduser()
    elif prefix == "wds" and data_dir is None:
        raise UserError(f"data {name!r} needs the folder or address of its shards: give it as data_dir")
    root = None if data_dir is None else os.fspath(data_dir)
    train = _create(name, "train", root, download)
    if train is None:
        raise UserError(f"data set {name!r} has no split 'train', which training needs")
    splits: dict[str, RawSplit | None] = {}
    for key, dataset in {"train": train, **{key: _create(name, key, root, download) for key in others}}.items():
        splits[key] = None if dataset is None else _labelled(dataset, key, limit_bytes)
    if splits["train"] is None:
        raise UserError(f"the training split of {name!r} has no labels: expected class numbers from 0")
    return raw_data(name, _class_names(train), splits["train"], splits.get("validation"), splits.get("test"))


def _create(name: str, split: str, root: str | None, download: bool) -> Any:
    """timm's data set, or None if it has no such split."""
    try:
        if download and root and "://" not in root:
            os.makedirs(root, exist_ok=True)
        return timm.data.create_dataset(name, root=root, split=split, download=download)
    except Exception as error:  # readers raise whatever their network and archive libraries do
        if isinstance(error, ValueError) and "split" in str(error).lower():
            return None
        where = f" in {root}" if root else ""
        hint = "the network or the name may be at fault" if download else "if it is not there yet, ask for download"
        what = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"data set {name!r} cannot be read{where}: {what} ({hint})") from error


def _labelled(dataset: Any, split: str, limit_bytes: int) -> RawSplit | None:
    """The split, or None if its labels are hidden (None or -1), as in many published test sets."""
    if isinstance(dataset, IterableDataset):
        dataset = _in_memory(dataset, split, limit_bytes)
    labels = _known_labels(dataset)
    if len(dataset):
        first = dataset[0][1] if labels is None else labels[0]
        if first is None or (np.ndim(first) == 0 and int(first) < 0):
            return None
    return from_dataset(dataset, split, labels)


def _in_memory(dataset: Any, split: str, limit_bytes: int) -> list[tuple[Any, int]]:
    """Items of a data set without positions, such as shards, in memory: per-sample state needs an index per image."""
    items: list[tuple[Any, int]] = []
    room = limit_bytes
    for image, label in dataset:
        room -= 3 * image.width * image.height
        if room < 0:
            raise UserError(
                f"the {split} split needs more than {limit_bytes / 2**30:.3g} GiB: sets read from start to end must "
                "fit in memory, give an image folder or an hfds/ name"
            )
        items.append((image, int(label)))
    return items


def _known_labels(dataset: Any) -> Any:
    """All labels without decoding images, for kinds of data sets that allow it; else None."""
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(reader, "iter_targets"):  # newer releases of timm
        return list(reader.iter_targets())
    if hasattr(reader, "label_key"):
        return reader.dataset[reader.label_key]
    if type(dataset).__name__ == "INaturalist":
        return [label for label, _ in dataset.index]
    return None


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    if names := getattr(dataset, "classes", None):
        # torchvision's ImageNet gives each class all its synonyms.
        return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in names)
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    return tuple(map(str, sorted(numbers, key=numbers.__getitem__))) if numbers else None
