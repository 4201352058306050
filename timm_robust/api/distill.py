"""`distill`: a data set in, a folder of a few images for each class out. Torch-free at import.

    plugins, options, folder                        mistakes are told before anything heavy is loaded
    observer, data, the order of the classes        tried on real images
    for each class of this process, unless done:    the distiller yields it; images, soft labels and record are written
    all processes done: the first one joins the records, and the manifest says that it is complete

A class whose record is there is done. So a killed distillation goes on where it was, with any number of processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.errors import RunFailed, UserError, unknown
from timm_robust.options import parse_options, to_dict
from timm_robust.plugin import DistillerSpec, get_manager
from timm_robust.runs.folder import DISTILLATION, MANIFEST, RunFolder, free_folder
from timm_robust.threat import make_threat
from timm_robust.utils.allocator import keep_freed_memory
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from torch import Tensor

    from timm_robust.data import DataBundle
    from timm_robust.distiller import DistillContext, DistilledClass
    from timm_robust.models.class_order import ClassAlignedModel
    from timm_robust.models.pixel_model import PixelModel
    from timm_robust.threat import Threat

FORMATS = {"png": ".png", "jpeg": ".jpg"}
"""How images are stored: without loss, or as JPEG of Pillow's quality."""

MAY_DIFFER = ("device", "data_dir", "download")
"""Arguments that a resumed distillation need not repeat."""

PATCHES, SOFT_LABELS, PARTS = "patches.jsonl", "soft_labels.npy", ".parts"


@dataclass(frozen=True)
class DistillResult:
    """Distilled data: `train(data=result.output)` learns from it.

    Attributes:
        output: the folder.
        record: the content of its manifest.json.
        use: arguments of `timm-robust train` that go with it.
    """

    output: Path
    record: dict[str, Any]
    use: str = ""

    def __repr__(self) -> str:
        record, observer = self.record, self.record["observer"]
        return (
            f"{self.output}: {record['images']} images of {record['image_size']} pixels, {record['ipc']} for each of "
            f"{len(record['classes'])} classes\nobserver {observer['name']}: {observer['accuracy']:.1%} of "
            f"{observer['images']} held-out images"
        )


def distill(
    data: Any = "digits",
    method: str = "rded",
    *,
    observer: str | Path | None = None,
    ipc: int = 10,
    output: str | Path | None = None,
    method_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    image_format: str = "png",
    data_dir: str | None = None,
    download: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    precision: str = "fp32",
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> DistillResult:
    """Makes a few images for each class of a data set, to train on in place of all of them or beside them.

    Args:
        data: as in `train`. Only its training images are used, less those held out for validation.
        method: a distiller, see `timm-robust distillers`.
        observer: a network trained on these classes: a run's folder, or a timm name whose pretrained weights fit. It
            chooses and labels; before anything is distilled, a few held-out images of each class try the order of its
            classes.
        ipc: images per class.
        output: the folder; by default `runs/METHOD-DATA-ipcN`, numbered if that is taken.
        method_args: options of the distiller by name, see `timm-robust distillers NAME`.
        image_size: side of the distilled images in pixels; by default that of the observer.
        image_format: "png", or "jpeg", which is smaller and loses detail.
        data_dir, download: for timm data sets, as in `train`.
        seed: of every random draw, and of the validation split.
        batch_size: images that the observer sees at once.
        precision: "fp32", "bf16" or "fp16", of the observer.
        device: by default the best there is.
        workers: processes that read images; by default one per core, at most 8.
        resume: go on with the distillation in `output`, with the same arguments.
        quiet: no progress.

    Returns:
        the folder and its record. Pass the folder as `data` to `train`: validation and test images are then those of
        the data that was distilled.

    Raises:
        UserError: any of the arguments is wrong, or the observer does not know these classes; nothing was written.
        RunFailed: an image could not be written; what is done stays.
    """
    asked = {name: value for name, value in locals().items() if name not in ("output", "resume", "quiet", "workers")}
    display, manager = Display(quiet), get_manager()
    spec = manager.distiller(method).spec
    options = parse_options(manager.load_config(method, DistillerSpec), dict(method_args or {}), owner=_owner(method))
    if observer is None:
        raise UserError(
            "no observer: name a run's folder, such as one of timm-robust train --method standard, or a timm model"
        )
    if isinstance(ipc, bool) or not isinstance(ipc, int) or ipc < 1:
        raise UserError(f"ipc is {ipc!r}: expected a whole number of images per class, such as 10")
    if image_format not in FORMATS:
        raise unknown("image format", image_format, FORMATS)
    if batch_size < 1:
        raise UserError(f"batch size is {batch_size}: expected at least 1")
    folder = RunFolder.open(
        output or _default_output(method, data, ipc, resume), resume, asked, may_differ=MAY_DIFFER, kind=DISTILLATION
    )
    before = _record(folder.path)
    if before.get("complete"):
        display.say(f"{folder.path} is distilled to the end: nothing to do")
        return DistillResult(folder.path, before, spec.use)

    from timm_robust.data import load_data
    from timm_robust.distillation.observer import open_observer
    from timm_robust.distiller import DistillContext
    from timm_robust.training.accelerator import PRECISIONS, make_accelerator

    try:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        accelerator = make_accelerator(precision, device, [], folder.path)
        keep_freed_memory(accelerator.device.type)
        display = display if accelerator.is_main_process else Display(quiet=True)
        network, metadata = open_observer(str(observer), image_size)
        size = network.config.image_size
        where: Any = {"data_dir": data_dir, "download": download}
        bundle = load_data(data, image_size=size, seed=seed, workers=workers, stream=True, **where)
        judge = _judge(str(observer), network, metadata, bundle).to(accelerator.device)
        task = DistillContext(
            train=bundle.train,
            class_names=bundle.class_names,
            ipc=ipc,
            image_size=size,
            observer=judge,
            threat=_threat(metadata, size),
            device=accelerator.device,
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            autocast=accelerator.autocast,
            progress=lambda done, total: display.advance(done, total=total) if display.due() else None,
        )
        distiller = manager.load_target(method, DistillerSpec)(options)
        distiller.setup(task)
        judged = _try_order(str(observer), bundle, task)
    except UserError:
        if not resume:
            folder.forget()  # nothing was made: the same folder takes the mended command
        raise
    record = {
        "complete": False,
        "method": method,
        "method_args": to_dict(options),
        "settings": distiller.settings(),
        "ipc": ipc,
        "image_size": size,
        "format": image_format,
        "seed": seed,
        "source": _source(data, data_dir),
        "observer": {
            "name": str(observer),
            "method": metadata.get("method"),
            "threat": metadata.get("threat"),
            **judged,
        },
        "classes": _classes(bundle.class_names, judge.columns),
        "held_out": None if bundle.val_indices is None else bundle.val.source_names,
        "precision": precision,
        "batch_size": batch_size,
        "plugin": manager.distiller(method).provider(),
        "versions": versions(),
        "hardware": hardware(),
    }
    work = _Work(folder, record, task)
    display.say(
        f"{method} on {bundle.name}: {ipc} images of {size} pixels for each of {len(bundle.class_names)} "
        f"classes, of {len(bundle.train)} training images\nobserver {observer}: {judged['accuracy']:.1%} of "
        f"{judged['images']} held-out images, its classes are in order; seed {seed}, output {folder.path}"
    )
    if accelerator.is_main_process:
        work.begin(str(observer), network, metadata)
    accelerator.wait_for_everyone()
    mine = range(accelerator.process_index, len(bundle.class_names), accelerator.num_processes)
    with display.bar("distilling", 1):
        for made in distiller.distill([number for number in mine if not work.done(number)]):
            work.write(made)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        work.finish(accelerator.num_processes)
    accelerator.wait_for_everyone()
    return DistillResult(folder.path, _record(folder.path), spec.use)


def read_asked(folder: Path) -> dict[str, Any]:
    """The arguments that the distillation in `folder` was started with.

    Raises:
        UserError: there is none.
    """
    from timm_robust.runs import folder as manifest

    return manifest.read_asked(folder, DISTILLATION)


def _record(folder: Path) -> dict[str, Any]:
    """What the manifest says so far; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((folder / MANIFEST).read_text()))
    return {}


def _judge(name: str, network: PixelModel, metadata: Mapping[str, Any], bundle: DataBundle) -> ClassAlignedModel:
    """The network with its classes in the order of the data's."""
    import torch

    from timm_robust.models.class_order import ClassAlignedModel, class_columns

    known, count = (metadata.get("data") or {}).get("class_names"), network.config.num_classes
    columns = class_columns(known, bundle.class_names, count, owner=f"observer {name!r}")
    return ClassAlignedModel(network.to(memory_format=torch.channels_last), columns).eval()  # type: ignore[call-overload]


def _threat(metadata: Mapping[str, Any], image_size: int) -> Threat:
    """What the observer was trained against, or the default."""
    trained = metadata.get("threat") or {}
    return make_threat(trained.get("norm", "Linf"), trained.get("eps_text"), image_size=image_size)


def _try_order(name: str, bundle: DataBundle, task: DistillContext) -> dict[str, Any]:
    """Accuracy of the observer on a few held-out images of each class; refuses one that does not know them."""
    from timm_robust.distillation.observer import predictions, probes, require_order

    with task.autocast():
        predicted, targets = predictions(
            task.observer,
            probes(bundle.val),
            batch_size=task.batch_size,
            device=task.device,
            workers=task.workers,
        )
    accuracy = require_order(predicted, targets, bundle.class_names, owner=f"observer {name!r}")
    return {"accuracy": round(accuracy, 4), "images": len(targets)}


class _Work:
    """The folder's content, class by class.

    Args:
        folder: where it goes.
        record: what the manifest says, but for what is known in the end.
        task: what the distiller works with.
    """

    def __init__(self, folder: RunFolder, record: dict[str, Any], task: DistillContext) -> None:
        self.folder, self.record, self.task = folder, record, task
        self.path, self.parts = folder.path, folder.path / PARTS

    def begin(self, name: str, network: PixelModel, metadata: dict[str, Any]) -> None:
        """Takes the folder: the manifest, and the observer, which students learn from."""
        from timm_robust.data.distilled import OBSERVER
        from timm_robust.runs.checkpoint import METADATA, WEIGHTS, find_checkpoint, save_model

        self.folder.write_manifest(self.record)
        with self._writing(self.path / OBSERVER):
            self.parts.mkdir(exist_ok=True)
            if not Path(name).expanduser().exists():
                save_model(self.path / OBSERVER, network, metadata)
                return
            found = find_checkpoint(Path(name).expanduser())
            (self.path / OBSERVER).mkdir(exist_ok=True)
            for file in (WEIGHTS, METADATA):
                shutil.copyfile(found / file, self.path / OBSERVER / file)

    def done(self, number: int) -> bool:
        """Whether a class is written."""
        return self._part(number, ".json").is_file()

    def write(self, made: DistilledClass) -> None:
        """Writes one class; its record comes last and says that it is there."""
        import numpy as np
        from PIL import Image

        from timm_robust.utils.files import write_atomically, write_json

        entry, ending = self.record["classes"][made.number], FORMATS[self.record["format"]]
        inside = f"train/{entry['folder']}"
        lines = []
        with self.task.timed("writing"), self._writing(self.path / inside):
            (self.path / inside).mkdir(parents=True, exist_ok=True)
            for number, (pixels, patches) in enumerate(zip(made.pixels, made.patches, strict=True)):
                file = f"{inside}/{number:05d}{ending}"
                Image.fromarray(pixels).save(self.path / file, format=self.record["format"])
                lines.append({"file": file, "class": made.number, "patches": [patch.to_dict() for patch in patches]})
            labels = self._soft_labels(made.pixels)
            write_atomically(self._part(made.number, ".npy"), lambda file: file.write_bytes(labels.tobytes()))
            about = {"images": lines, "about": made.about, "labels": np.shape(labels)}
            write_json(self._part(made.number, ".json"), about)

    def finish(self, processes: int) -> None:
        """Joins the records of all classes, and says that the data is complete."""
        import numpy as np

        from timm_robust.utils.files import write_atomically, write_text

        lines, labels = [], []
        with self._writing(self.path):
            for number, entry in enumerate(self.record["classes"]):
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
            seconds = {what: round(value, 2) for what, value in self.task.seconds.items()}
            self.record |= {"complete": True, "images": len(lines), "processes": processes, "seconds": seconds}
            self.folder.write_manifest(self.record)
            shutil.rmtree(self.parts)

    def _soft_labels(self, pixels: Any) -> Any:
        """The observer's logits of whole images, float16 [N, K]."""
        import torch

        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        found = []
        with torch.no_grad(), self.task.autocast():
            for part in images.split(self.task.batch_size):
                found.append(self.task.observer(part.to(self.task.device).float().div_(255)).half().cpu())
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


def _owner(method: str) -> str:
    return f"distiller {method!r}"


def _default_output(method: str, data: Any, ipc: int, resume: bool) -> Path:
    if resume:
        raise UserError("resume needs the folder of the distillation to continue: pass output")
    source = Path(data).stem if isinstance(data, (str, Path)) else "data"
    path = Path("runs") / f"{method}-{source}-ipc{ipc}".replace("/", "_").lower()
    return free_folder(path) if path.exists() else path


def _source(data: Any, data_dir: str | None) -> dict[str, str | None]:
    """Where the data is, so that its validation and test images are found from any working directory."""
    if not isinstance(data, (str, os.PathLike)):
        return {"data": None, "data_dir": None}
    from timm_robust.data.sources import is_known

    name = os.fspath(data)
    path = Path(name).expanduser()
    root = None if data_dir is None or "://" in data_dir else str(Path(data_dir).expanduser().resolve())
    return {"data": name if is_known(name) else str(path.resolve()), "data_dir": root or data_dir}


def _classes(names: Sequence[str], columns: Tensor | None) -> list[dict[str, Any]]:
    """For each class its name, its folder, and its number for the observer."""
    plain = all(re.fullmatch(r"[\w][\w .,'()&+-]*", name) and len(name) <= 100 for name in names)
    distinct = len({name.strip(" .").lower() for name in names}) == len(names)
    folders = names if plain and distinct else [f"{number:05d}" for number in range(len(names))]
    numbers = range(len(names)) if columns is None else columns.tolist()
    return [
        {"name": name, "folder": folder, "observer_class": number}
        for name, folder, number in zip(names, folders, numbers, strict=True)
    ]
