"""Extra training images, such as generated ones: a folder, an .npz, a data set by name or tensors -> `Extra`.

Small images stay on the host as one uint8 array, or on disk if an .npz is not compressed: a million of them take no
device memory, and processes on one machine share them.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_robust.data.bundle import DataBundle, Extra, Split
from timm_robust.data.class_order import match_classes
from timm_robust.data.distilled import read_manifest, training_images
from timm_robust.data.raw import RawSplit
from timm_robust.data.read import is_known, not_found, read_source
from timm_robust.data.sources import folder_split, from_arrays, one_split, subfolders
from timm_robust.data.streaming import decode_all
from timm_robust.errors import UserError
from timm_robust.utils.progress import Progress

NPZ_KEYS = (("train_images", "train_labels"), ("image", "label"), ("images", "labels"))
"""Names of the two arrays in an .npz: MedMNIST's, those of published generated images, and the obvious ones."""


def add_extra(
    bundle: DataBundle,
    data: Any,
    share: float,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataBundle:
    """The bundle with extra training images, at its image size and with its class numbers.

    Args:
        bundle: real data; validation and test splits stay as they are.
        data: a folder `CLASS/*` or `train/CLASS/*`; an .npz with a pair of `NPZ_KEYS`; a data set by name, of which the
            training split is taken; a map-style data set, or a pair of tensors (images, labels).
        share: share of each batch, between 0 and 1.
        data_dir, download, workers, progress: as in `load_data`.

    Raises:
        UserError: no such data, classes that the real data lacks, or a share out of bounds.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise UserError(f"extra_share is {share!r}: expected a number between 0 and 1, such as 0.7")
    name, raw, names = _read(data, data_dir, download)
    labels = _numbered(name, raw.labels, names, bundle)
    pixels = None
    if bundle.train.resident:
        decoded, kept = decode_all(raw.images, bundle.image_size, workers, progress)
        if not len(kept):
            raise UserError(f"extra data {name!r} has no readable image among {len(labels)}")
        if len(kept) < len(labels):
            raw, labels = raw.take(kept), labels[kept]
        pixels = torch.from_numpy(decoded)
    return replace(bundle, extra=Extra(name, Split(raw.images, labels, bundle.image_size, pixels), float(share)))


def _read(
    data: Any, data_dir: str | os.PathLike[str] | None, download: bool
) -> tuple[str, RawSplit, tuple[str, ...] | None]:
    """Name, images, and class names if there are any."""
    if not isinstance(data, (str, os.PathLike)):
        names = getattr(data, "classes", None)
        label = "arrays" if isinstance(data, (tuple, list)) else type(data).__name__
        return label, one_split(data, "extra"), tuple(map(str, names)) if names else None
    name = os.fspath(data)
    path = Path(name).expanduser()
    if is_known(name):
        source = read_source(name, data_dir=data_dir, download=download)
        return name, source.train, source.class_names
    if path.is_dir():
        if manifest := read_manifest(path):
            names, images = training_images(path, name, manifest)
            return name, images, names
        inside = "train" if (path / "train").is_dir() else "."
        classes = tuple(sorted(subfolders(path / inside)))
        if not classes:
            raise UserError(f"extra data {name!r} has no class folders: expected CLASS/* or train/CLASS/* in it")
        return name, folder_split(path, inside, classes, name), classes
    if path.is_file() and path.suffix.lower() == ".npz":
        return name, _from_npz(path, name), None
    if path.exists():
        raise UserError(f"extra data {name!r} is a file of another kind: expected a folder of classes, or a .npz")
    raise not_found("extra data", name)


def _from_npz(path: Path, name: str) -> RawSplit:
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = next((pair for pair in NPZ_KEYS if set(pair) <= set(archive.files)), None)
            if keys is None:
                held = ", ".join(archive.files) or "nothing"
                expected = ", or ".join(" and ".join(pair) for pair in NPZ_KEYS)
                raise UserError(f"extra data {name!r} holds {held}: expected {expected}")
            images, labels = _array(path, archive, keys[0]), archive[keys[1]]
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"extra data {name!r} cannot be read as .npz, it may be truncated: {error}") from error
    return from_arrays(images, labels, "extra")


def _array(path: Path, archive: Any, key: str) -> np.ndarray:
    """An array of an .npz: memory-mapped if it is not compressed."""
    member = archive.zip.getinfo(f"{key}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        return archive[key]
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # its name and an extra field, then the array
        if np.lib.format.read_magic(file) != (1, 0):
            return archive[key]
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or not np.prod(shape):
            return archive[key]
        return np.memmap(file, dtype, "c", file.tell(), shape, "F" if fortran else "C")


def _numbered(name: str, labels: np.ndarray, names: tuple[str, ...] | None, bundle: DataBundle) -> np.ndarray:
    """Labels in the class numbers of the real data, int64 [N]; see `match_classes`."""
    if not len(labels):
        raise UserError(f"extra data {name!r} is empty: expected at least one image")
    count = len(names or bundle.class_names)
    if labels.max() >= count:
        raise UserError(
            f"extra data {name!r} has class number {labels.max()}, but there are {count} classes: expected 0 to "
            f"{count - 1}"
        )
    numbers = match_classes(
        bundle.class_names,
        names,
        owner=f"data {bundle.name!r}",
        data=f"extra data {name!r}",
        remedy="expected class folders with the names of the data's classes",
        used=np.unique(labels).tolist(),
    )
    return labels if numbers is None else np.array(numbers)[labels]
