"""Folders that `timm-robust distill` wrote: images to train on, and what else belongs to them.

    manifest.json     how they were made, and from which data
    train/CLASS/*     the images, as many for each class
    patches.jsonl     one line per image: its file, its class, and where each of its patches was cut out
    soft_labels.npy   float16 [images, classes], the observer's logits of whole images, in the order of patches.jsonl
    observer/         the network that chose them: a checkpoint, and the teacher of students

There are training images only. Validation and test images are those of the data that the manifest names, and no image
that is held out for validation was distilled.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timm_robust.data.images import FileImages
from timm_robust.data.raw import RawData, RawSplit
from timm_robust.data.sources import image_files, read_source
from timm_robust.errors import UserError
from timm_robust.runs.folder import DISTILLATION, MANIFEST

OBSERVER = "observer"


@dataclass(frozen=True)
class Distilled:
    """What a run may know of distilled data.

    Attributes:
        folder: where it lies.
        record: the content of manifest.json.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def teachers(self) -> dict[str, Path]:
        """Trained networks that come with the data, by the option of a method that learns from one."""
        return {OBSERVER: self.folder / OBSERVER}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The manifest of distilled data; None where the folder holds something else."""
    try:
        record = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("kind") == DISTILLATION else None


def from_distilled(
    root: Path,
    name: str,
    record: dict[str, Any],
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    limit_bytes: int = 4 * 2**30,
) -> RawData:
    """The distilled images, with validation and test images of the data that they stand for.

    Args:
        root: the folder.
        name: as the user named it.
        record: its manifest.
        data_dir, download, limit_bytes: for that data, as in `read_source`; what the manifest says is the default.

    Raises:
        UserError: the distillation was not finished, or its data is not where it was.
    """
    names, train = training_images(root, name, record)
    source = record["source"]["data"]
    if source is None:
        raise UserError(
            f"data {name!r} was distilled from Python objects, which cannot be found again: pass data as a dict with "
            f"train, val and test, and as train a data set such as torchvision's ImageFolder of {root / 'train'}"
        )
    try:
        real = read_source(
            source, data_dir=data_dir or record["source"]["data_dir"], download=download, limit_bytes=limit_bytes
        )
    except UserError as error:
        raise UserError(
            f"validation and test images of {name!r} are those of {source!r} (entry 'source' in {MANIFEST}): {error}"
        ) from error
    if real.class_names and real.class_names != names:
        raise UserError(f"data {name!r} was distilled from {source!r}, whose classes have changed since")
    val = real.val or _held_out(real.train, record["held_out"], name, source)
    return RawData(name, names, train, val, real.test, record["image_size"], Distilled(root, record))


def training_images(root: Path, name: str, record: dict[str, Any]) -> tuple[tuple[str, ...], RawSplit]:
    """Names of the classes, in the order of the data that was distilled, and the images.

    Raises:
        UserError: the distillation was not finished, or images are gone.
    """
    if not record.get("complete"):
        raise UserError(f"data {name!r} is not distilled to the end: timm-robust distill --resume --output {name}")
    paths: list[str] = []
    labels: list[int] = []
    for number, entry in enumerate(record["classes"]):
        files = image_files(root, os.path.join("train", entry["folder"]))
        if not files:
            raise UserError(f"data {name!r} has no image in train/{entry['folder']}: distill it once more")
        paths += files
        labels += [number] * len(files)
    names = tuple(entry["name"] for entry in record["classes"])
    return names, RawSplit(FileImages(str(root), paths), np.array(labels, np.int64))


def _held_out(train: RawSplit, names: list[str], name: str, source: str) -> RawSplit:
    """The images of the source's training split that were held out, in the order of the manifest."""
    places = {train.images.name(i): i for i in range(len(train.images))}
    if missing := [one for one in names if one not in places]:
        raise UserError(
            f"data {name!r} was distilled from {source!r}, which has changed since: validation image {missing[0]} is "
            "no longer there"
        )
    return train.take(np.array([places[one] for one in names], np.int64))
