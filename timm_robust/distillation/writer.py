"""Writer of a distilled data set's folder (its layout: `data.distilled`), class by class.

A class is done once its record, written last, is in `.parts`. So a killed distillation goes on with the classes that
are missing, with any number of processes; the first one joins the records when all are done.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timm_robust.data.raw import OBSERVER
from timm_robust.distillation.observer import Observer
from timm_robust.distillation.settings import IMAGE_FORMATS
from timm_robust.distiller import DistillContext, DistilledClass
from timm_robust.errors import RunFailed
from timm_robust.runs.checkpoint import METADATA, WEIGHTS, find_checkpoint, save_model
from timm_robust.runs.folder import RunFolder
from timm_robust.utils.files import write_atomically, write_json, write_text

PATCHES, SOFT_LABELS, PARTS = "patches.jsonl", "soft_labels.npy", ".parts"


class DistilledWriter:
    """Writer of the folder's content.

    Args:
        folder: folder of the distillation.
        manifest: content of its manifest, except for what is known only in the end.
        context: context of the distiller.
    """

    def __init__(self, folder: RunFolder, manifest: dict[str, Any], context: DistillContext) -> None:
        self.folder, self.manifest, self.context = folder, manifest, context
        self.path, self.parts = folder.path, folder.path / PARTS

    def begin(self, observer: Observer) -> None:
        """Writes the manifest, and the observer, from which students learn."""
        self.folder.write_manifest(self.manifest)
        with self._writing(self.path / OBSERVER):
            self.parts.mkdir(exist_ok=True)
            source = Path(observer.name).expanduser()
            if not source.exists():
                save_model(self.path / OBSERVER, observer.network, observer.metadata)
                return
            found = find_checkpoint(source)
            (self.path / OBSERVER).mkdir(exist_ok=True)
            for file in (WEIGHTS, METADATA):
                shutil.copyfile(found / file, self.path / OBSERVER / file)

    def done(self, number: int) -> bool:
        """Whether a class is written."""
        return self._part(number, ".json").is_file()

    def write(self, made: DistilledClass) -> None:
        """Writes one class; its record comes last and marks it as done."""
        entry, image_format = self.manifest["classes"][made.number], self.manifest["format"]
        inside = f"train/{entry['folder']}"
        lines = []
        with self.context.timed("writing"), self._writing(self.path / inside):
            (self.path / inside).mkdir(parents=True, exist_ok=True)
            for number, (pixels, patches) in enumerate(zip(made.pixels, made.patches, strict=True)):
                file = f"{inside}/{number:05d}{IMAGE_FORMATS[image_format]}"
                Image.fromarray(pixels).save(self.path / file, format=image_format)
                lines.append({"file": file, "class": made.number, "patches": [patch.to_dict() for patch in patches]})
            labels = self._soft_labels(made.pixels)
            write_atomically(self._part(made.number, ".npy"), lambda file: file.write_bytes(labels.tobytes()))
            about = {"images": lines, "about": made.about, "labels": np.shape(labels)}
            write_json(self._part(made.number, ".json"), about)

    def finish(self, processes: int) -> None:
        """Joins the records of all classes, and marks the data as complete.

        Args:
            processes: number of processes that distilled, for the manifest.
        """
        lines, labels = [], []
        with self._writing(self.path):
            for number, entry in enumerate(self.manifest["classes"]):
                part = json.loads(self._part(number, ".json").read_text())
                lines += part["images"]
                entry.update(part["about"])
                raw = np.frombuffer(self._part(number, ".npy").read_bytes(), np.float16)
                labels.append(raw.reshape(part["labels"]))
            write_text(self.path / PATCHES, "".join(json.dumps(line) + "\n" for line in lines))
            together = np.concatenate(labels)

            def save(file: Path) -> None:
                with file.open("wb") as opened:
                    np.save(opened, together)

            write_atomically(self.path / SOFT_LABELS, save)
            seconds = {what: round(value, 2) for what, value in self.context.seconds.items()}
            self.manifest |= {"complete": True, "images": len(lines), "processes": processes, "seconds": seconds}
            self.folder.write_manifest(self.manifest)
            shutil.rmtree(self.parts)

    @torch.no_grad()
    def _soft_labels(self, pixels: np.ndarray) -> np.ndarray:
        """The observer's logits of whole images, float16 [N, K]."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        context, found = self.context, []
        with context.autocast():
            for part in images.split(context.batch_size):
                found.append(context.observer(part.to(context.device).float().div_(255)).half().cpu())
        return torch.cat(found).numpy()

    def _part(self, number: int, ending: str) -> Path:
        return self.parts / f"{number:05d}{ending}"

    @contextlib.contextmanager
    def _writing(self, where: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"cannot write into {where} ({error.strerror or error}); what is done stays, go on with: "
                f"timm-robust distill --resume --output {self.path}"
            ) from error


def class_entries(names: Sequence[str], columns: Tensor | None) -> list[dict[str, Any]]:
    """For each class its name, its folder, and its number for the observer.

    Folders have the names of the classes where a file system takes all of them, else five-digit numbers.
    """
    plain = all(re.fullmatch(r"[\w][\w .,'()&+-]*", name) and len(name) <= 100 for name in names)
    distinct = len({name.strip(" .").lower() for name in names}) == len(names)
    folders = names if plain and distinct else [f"{number:05d}" for number in range(len(names))]
    numbers = range(len(names)) if columns is None else columns.tolist()
    return [
        {"name": name, "folder": folder, "observer_class": number}
        for name, folder, number in zip(names, folders, numbers, strict=True)
    ]
