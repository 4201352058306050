"""Readers of folders, files and Python objects: each returns the raw splits; nothing is held out or scaled here."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_robust.data.arrays import to_labels, to_pixels
from timm_robust.data.images import ArrayImages, DatasetImages, FileImages, Unreadable
from timm_robust.data.raw import RawData, RawSplit
from timm_robust.data.split import hold_out
from timm_robust.errors import UserError, unknown

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_FOLDERS = ("val", "validation", "valid")


def digits() -> RawData:
    """scikit-learn's 1,797 scans of digits, 8x8 with 17 grey levels, in a fixed stratified split of 80 to 20 %."""
    from sklearn.datasets import load_digits  # takes a second to load

    scans = load_digits()
    pixels = to_pixels(np.rint(scans.images * (255 / 16)).astype(np.uint8), "digits")
    everything = RawSplit(ArrayImages(pixels, "digits"), scans.target.astype(np.int64))
    kept, tested = hold_out(everything.labels, size=360, seed=0)
    names = tuple(str(name) for name in scans.target_names)
    return RawData("digits", names, everything.take(kept), None, everything.take(tested))


def from_folder(root: Path, name: str, *, test_only: bool = False) -> RawData:
    """Image folder: `train/CLASS/*` with `val/CLASS/*`, `test/CLASS/*` or both; sorted classes give the labels."""
    alone = next((folder for folder in ("test", *VALIDATION_FOLDERS) if (root / folder).is_dir()), None)
    if not (root / "train").is_dir():
        if test_only and alone:
            classes = tuple(sorted(subfolders(root / alone)))
            only = folder_split(root, alone, classes, name)
            return RawData(name, classes, only, only, only)
        above = root.parent if root.name in ("train", "test", *VALIDATION_FOLDERS) else None
        hint = f"did you mean {above}?" if above and (above / "train").is_dir() else "expected train/CLASS/* in it"
        raise UserError(f"folder {name!r} has no train/ inside: {hint}")
    classes = tuple(sorted(subfolders(root / "train")))
    if not classes:
        raise UserError(f"folder {name!r} has no class folders in train/: expected train/CLASS/*")
    train = folder_split(root, "train", classes, name)
    val_folder = next((folder for folder in VALIDATION_FOLDERS if (root / folder).is_dir()), None)
    val = folder_split(root, val_folder, classes, name) if val_folder else None
    test = folder_split(root, "test", classes, name) if (root / "test").is_dir() else None
    return raw_data(name, classes, train, val, test)


def raw_data(
    name: str, classes: tuple[str, ...] | None, train: RawSplit, val: RawSplit | None, test: RawSplit | None
) -> RawData:
    """Of two splits beside training, `val` is for selection and `test` for testing; a single one is always the test."""
    if test is not None:
        return RawData(name, classes, train, val, test)
    if val is not None:
        return RawData(name, classes, train, None, val)
    raise UserError(f"data {name!r} has neither a validation nor a test split: expected at least one of them")


def subfolders(path: Path) -> list[str]:
    """Names of a folder's subfolders, without hidden ones."""
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]


def folder_split(
    root: Path, split: str, classes: tuple[str, ...], name: str, hint: str = "train/ lacks it"
) -> RawSplit:
    """Images in `split`/CLASS; `hint` says why another class is refused."""
    paths: list[str] = []
    labels: list[int] = []
    for label in sorted(subfolders(root / split)):
        if label not in classes:
            raise unknown(f"class folder in {split}/ of {name!r}", label, classes, hint=hint)
        files = image_files(root, os.path.join(split, label))
        if not files and split == "train":
            raise UserError(f"class folder train/{label} of {name!r} holds no image: expected {' '.join(EXTENSIONS)}")
        paths += files
        labels += [classes.index(label)] * len(files)
    if not paths:
        raise UserError(f"{split}/ of {name!r} holds no image: expected {split}/CLASS/* with {' '.join(EXTENSIONS)}")
    return RawSplit(FileImages(str(root), paths), np.array(labels, np.int64))


def image_files(root: Path, folder: str) -> list[str]:
    """Image files below `folder`, at any depth, relative to `root`, sorted."""
    found = []
    for where, _, files in os.walk(root / folder, followlinks=True):
        inside = os.path.relpath(where, root)
        found += [os.path.join(inside, f) for f in files if f.lower().endswith(EXTENSIONS) and not f.startswith(".")]
    return sorted(found)


def from_npz(path: Path, name: str) -> RawData:
    """.npz in MedMNIST's convention: {train,test}_{images,labels}, and optionally val_images and val_labels."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files if key.endswith(("_images", "_labels"))}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"file {name!r} cannot be read as .npz, it may be truncated: {error}") from error
    splits = [
        split for split in ("train", "val", "test") if split != "val" or {"val_images", "val_labels"} & set(arrays)
    ]
    required = [f"{split}_{part}" for split in splits for part in ("images", "labels")]
    if lacking := [key for key in required if key not in arrays]:
        raise UserError(f"file {name!r} lacks {', '.join(lacking)}: expected {', '.join(required)}")
    found = {split: from_arrays(arrays[f"{split}_images"], arrays[f"{split}_labels"], split) for split in splits}
    return RawData(name, None, found["train"], found.get("val"), found["test"])


def from_arrays(images: Any, labels: Any, split: str) -> RawSplit:
    """Split of arrays or tensors: images as in `to_pixels`, labels [N] or [N, 1]."""
    raw = RawSplit(ArrayImages(to_pixels(images, f"{split} images"), split), to_labels(labels, f"{split} labels"))
    if len(raw.images) != len(raw.labels):
        raise UserError(f"{split} has {len(raw.images)} images and {len(raw.labels)} labels: expected as many of each")
    return raw


def from_python(data: Any) -> RawData:
    """A pair (train, test) or a dict with train, test and optionally val, of data sets or of (images, labels)."""
    if isinstance(data, (tuple, list)) and len(data) == 2:
        parts = dict(zip(("train", "test"), data, strict=True))
    elif isinstance(data, Mapping):
        parts = dict(data)
        for key in parts:
            if key not in ("train", "val", "test"):
                raise unknown("split", str(key), ("train", "val", "test"))
        if lacking := [key for key in ("train", "test") if key not in parts]:
            raise UserError(f"data lacks {' and '.join(lacking)}: expected train, test and perhaps val")
    else:
        raise UserError(
            f"data is a {type(data).__name__}: expected a name or path, a pair (train, test) or a dict with train, "
            "val and test, of data sets or of (images, labels)"
        )
    raw = {split: one_split(part, split) for split, part in parts.items() if part is not None}
    names = getattr(parts["train"], "classes", None)
    kind = parts["train"]
    name = "arrays" if _is_pair(kind) else type(kind).__name__
    return RawData(name, tuple(map(str, names)) if names else None, raw["train"], raw.get("val"), raw["test"])


def _is_pair(part: Any) -> bool:
    return (
        isinstance(part, (tuple, list))
        and len(part) == 2
        and all(isinstance(values, (torch.Tensor, np.ndarray)) for values in part)
        and part[0].ndim >= 3
        and part[1].ndim in (1, 2)
    )


def one_split(part: Any, split: str) -> RawSplit:
    """Split of a map-style data set or of a pair (images, labels)."""
    if _is_pair(part):
        return from_arrays(part[0], part[1], split)
    if hasattr(part, "__len__") and hasattr(part, "__getitem__"):
        return from_dataset(part, split)
    raise UserError(
        f"the {split} split is a {type(part).__name__}: expected a map-style data set (with a length, giving pairs of "
        "image and class number) or a pair of tensors (images, labels)"
    )


def from_dataset(dataset: Any, split: str, labels: Any = None) -> RawSplit:
    """Split of a map-style data set whose items are (PIL image, tensor or array; class number).

    Args:
        dataset: data set with a length, without random transforms: items are read once, or augmented by the loaders.
        split: name of the split, for messages.
        labels: all class numbers, if known to the caller.
    """
    images = DatasetImages(dataset, split)
    if len(images) == 0:
        raise UserError(f"the {split} split is empty: expected at least one image per class")
    try:
        if np.asarray(images.read(0)).tobytes() != np.asarray(images.read(0)).tobytes():
            raise UserError(
                f"the {split} data set gives its first image differently each time: leave random transforms out, "
                "the recipe augments"
            )
    except Unreadable:
        pass
    return RawSplit(images, to_labels(_labels(dataset) if labels is None else labels, f"{split} labels"))


def _labels(dataset: Any) -> Any:
    """All class numbers: from `targets` or `labels` if they agree with some items, else by reading every item."""
    for attribute in ("targets", "labels"):
        known = getattr(dataset, attribute, None)
        if isinstance(known, (list, tuple, np.ndarray, torch.Tensor)) and len(known) == len(dataset):
            some = {0, len(dataset) // 2, len(dataset) - 1}
            if all(np.array_equal(np.asarray(known[i]), np.asarray(dataset[i][1])) for i in some):
                return known
    return np.array([np.asarray(dataset[i][1]) for i in range(len(dataset))])
