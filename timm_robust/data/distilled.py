"""Reader of distilled data sets, the folders that `timm-robust distill` writes.

    manifest.json     how they were made, and from which data
    train/CLASS/*     the images, equally many per class
    patches.jsonl     one line per image: its file, its class, and where each of its patches was cut out
    soft_labels.npy   float16 [images, classes], the observer's logits of whole images, in the order of patches.jsonl
    observer/         the network that chose them: a checkpoint, and the teacher of students

There are training images only. Validation and test images are those of the data set that the manifest names; images
held out for validation are never distilled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from timm_robust.data.images import FileImages
from timm_robust.data.raw import Distilled, RawData, RawSplit
from timm_robust.data.sources import image_files
from timm_robust.errors import UserError

MANIFEST, KIND = "manifest.json", "distillation"
"""As `runs.folder`, a room above this one, writes them; a test compares the two."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of distilled data; None where the folder holds something else."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == KIND else None


def source_of(root: Path, name: str, manifest: dict[str, Any]) -> tuple[str, str | None]:
    """The data set that was distilled, and the folder that it is kept in where that is not the default.

    Raises:
        UserError: the distillation was not finished, or was one of Python objects.
    """
    require_complete(name, manifest)
    source = manifest["source"]["data"]
    if source is None:
        raise UserError(
            f"data {name!r} was distilled from Python objects, which cannot be found again: pass data as a dict with "
            f"train, val and test, and as train a data set such as torchvision's ImageFolder of {root / 'train'}"
        )
    return source, manifest["source"]["data_dir"]


def from_distilled(root: Path, name: str, manifest: dict[str, Any], real: RawData) -> RawData:
    """The distilled images, with validation and test images of the data set that they stand for.

    Args:
        root: the folder.
        name: as the user named it.
        manifest: content of its manifest.json.
        real: the data set that was distilled.

    Raises:
        UserError: distilled images are missing, or that data set has changed.
    """
    source = manifest["source"]["data"]
    names, train = training_images(root, name, manifest)
    if real.class_names and real.class_names != names:
        raise UserError(f"data {name!r} was distilled from {source!r}, whose classes have changed since")
    val = real.val or _held_out(real.train, manifest["held_out"], name, source)
    return RawData(name, names, train, val, real.test, manifest["image_size"], Distilled(root, manifest))


def require_complete(name: str, manifest: dict[str, Any]) -> None:
    """Refuses data whose distillation was not finished."""
    if not manifest.get("complete"):
        raise UserError(f"data {name!r} is not distilled to the end: timm-robust distill --resume --output {name}")


def training_images(root: Path, name: str, manifest: dict[str, Any]) -> tuple[tuple[str, ...], RawSplit]:
    """Class names, in the order of the data set that was distilled, and the distilled images.

    Raises:
        UserError: the distillation was not finished, or images are missing.
    """
    require_complete(name, manifest)
    paths: list[str] = []
    labels: list[int] = []
    for number, entry in enumerate(manifest["classes"]):
        files = image_files(root, os.path.join("train", entry["folder"]))
        if not files:
            raise UserError(f"data {name!r} has no image in train/{entry['folder']}: distill it once more")
        paths += files
        labels += [number] * len(files)
    names = tuple(entry["name"] for entry in manifest["classes"])
    return names, RawSplit(FileImages(str(root), paths), np.array(labels, np.int64))


def _held_out(train: RawSplit, names: list[str], name: str, source: str) -> RawSplit:
    """Images of the source's training split that were held out for validation, in the order of the manifest."""
    places = {train.images.name(i): i for i in range(len(train.images))}
    if missing := [one for one in names if one not in places]:
        raise UserError(
            f"data {name!r} was distilled from {source!r}, which has changed since: validation image {missing[0]} is "
            "no longer there"
        )
    return train.take(np.array([places[one] for one in names], np.int64))
