"""`distill`: a data set in, a folder with a few images per class out. Torch-free at import.

    plugins, options, folder                        mistakes are reported before anything heavy is loaded
    observer, data, the order of the classes        checked on real images
    for each class of this process, unless done:    the distiller yields it; images, soft labels and record are written
    all processes done: the first one joins the records, and the manifest says that the data is complete

A class whose record exists is done. So a killed distillation goes on where it was, with any number of processes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.distillation.settings import DistillSettings
from timm_robust.errors import UserError, unknown
from timm_robust.options import Options, parse_options, to_dict
from timm_robust.plugin import DistillerSpec, get_manager
from timm_robust.runs import folder as run_folder
from timm_robust.runs.folder import DISTILLATION, RunFolder, free_folder
from timm_robust.runs.layout import MANIFEST
from timm_robust.utils.allocator import keep_freed_memory
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from accelerate import Accelerator

    from timm_robust.data import DataBundle
    from timm_robust.distillation.observer import Observer
    from timm_robust.distillation.writer import DistilledWriter
    from timm_robust.distiller import DistillContext, Distiller

MAY_DIFFER = ("device", "data_dir", "download")
"""Arguments that a resumed distillation need not repeat."""


@dataclass(frozen=True)
class DistillResult:
    """Distilled data set: `train(data=result.output)` trains on it.

    Attributes:
        output: folder of the data set.
        manifest: content of its manifest.json.
        use: matching arguments of `timm-robust train`.
    """

    output: Path
    manifest: dict[str, Any]
    use: str = ""

    def __repr__(self) -> str:
        manifest, observer = self.manifest, self.manifest["observer"]
        return (
            f"{self.output}: {manifest['images']} images of {manifest['image_size']} pixels, {manifest['ipc']} for "
            f"each of {len(manifest['classes'])} classes\nobserver {observer['name']}: {observer['accuracy']:.1%} of "
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
    """Makes a few images per class of a data set, to train on instead of all of them or beside them.

    Args:
        data: data set, as in `train`. Only its training images are used, except those held out for validation.
        method: distiller, see `timm-robust distillers`.
        observer: network trained on these classes, which chooses and labels the images: a run's folder, or a timm name
            whose pretrained weights fit. The order of its classes is checked on a few held-out images of each class
            before anything is distilled.
        ipc: images per class.
        output: folder; default: `runs/METHOD-DATA-ipcN`, numbered if it exists.
        method_args: options of the distiller by name, see `timm-robust distillers NAME`.
        image_size: side of the distilled images in pixels; default: that of the observer.
        image_format: "png", or "jpeg", which is smaller and lossy.
        data_dir, download: for timm data sets, as in `train`.
        seed: random seed of the distillation and of the validation split.
        batch_size: images per forward pass of the observer.
        precision: "fp32", "bf16" or "fp16", for the observer.
        device: device such as "cpu"; default: the best available.
        workers: number of processes that read images; default: one per core, at most 8.
        resume: continue the distillation in `output`, with the same arguments.
        quiet: no progress output.

    Returns:
        the folder and its manifest. Pass the folder as `data` to `train`: validation and test images are then those of
        the data set that was distilled.

    Raises:
        UserError: an invalid argument, or an observer of other classes; nothing was written.
        RunFailed: an image could not be written; what is done stays.
    """
    settings = DistillSettings(
        data=data,
        method=method,
        observer=observer,
        ipc=ipc,
        method_args=method_args,
        image_size=image_size,
        image_format=image_format,
        data_dir=data_dir,
        download=download,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        device=device,
    )
    display, manager = Display(quiet), get_manager()
    spec = manager.distiller(method).spec
    config = manager.load_config(method, DistillerSpec)
    options = parse_options(config, dict(method_args or {}), owner=f"distiller {method!r}")
    settings.require_valid()
    folder = RunFolder.open(
        output or _default_output(settings, resume), resume, vars(settings), may_differ=MAY_DIFFER, kind=DISTILLATION
    )
    before = _read_manifest(folder.path)
    if before.get("complete"):
        display.say(f"{folder.path} is distilled to the end: nothing to do")
        return DistillResult(folder.path, before, spec.use)
    try:
        work = _prepare(settings, options, folder, workers, display)
    except UserError:
        if not resume:
            folder.forget()  # nothing was made: the corrected command takes the same folder
        raise
    _run(work)
    return DistillResult(folder.path, _read_manifest(folder.path), spec.use)


def read_asked(folder: Path) -> dict[str, Any]:
    """The arguments that the distillation in `folder` was started with.

    Raises:
        UserError: there is none.
    """
    return run_folder.read_asked(folder, DISTILLATION)


@dataclass(frozen=True)
class _Work:
    """A distillation that may begin."""

    accelerator: Accelerator
    display: Display
    observer: Observer
    context: DistillContext
    distiller: Distiller
    writer: DistilledWriter
    introduction: str


def _prepare(
    settings: DistillSettings, options: Options, folder: RunFolder, workers: int | None, display: Display
) -> _Work:
    """Loads and checks everything; writes nothing.

    Raises:
        UserError: data, observer or options that do not fit.
    """
    from timm_robust.data import load_data
    from timm_robust.distillation.observer import check_order, open_observer
    from timm_robust.distillation.writer import DistilledWriter
    from timm_robust.distiller import DistillContext
    from timm_robust.training.accelerator import PRECISIONS, make_accelerator

    if settings.precision not in PRECISIONS:
        raise unknown("precision", settings.precision, PRECISIONS)
    manager = get_manager()
    accelerator = make_accelerator(settings.precision, settings.device, [], folder.path)
    keep_freed_memory(accelerator.device.type)
    display = display if accelerator.is_main_process else Display(quiet=True)
    manager.register_models()
    observer = open_observer(str(settings.observer), settings.image_size)
    size = observer.network.config.image_size
    bundle = load_data(
        settings.data,
        image_size=size,
        seed=settings.seed,
        workers=workers,
        stream=True,
        data_dir=settings.data_dir,
        download=settings.download,
    )
    context = DistillContext(
        train=bundle.train,
        class_names=bundle.class_names,
        ipc=settings.ipc,
        image_size=size,
        observer=observer.aligned(bundle.class_names).to(accelerator.device),
        threat=observer.threat,
        device=accelerator.device,
        seed=settings.seed,
        batch_size=settings.batch_size,
        workers=workers,
        autocast=accelerator.autocast,
        progress=lambda _, done, total, status="": display.advance(done, total=total) if display.due() else None,
    )
    distiller = manager.load_target(settings.method, DistillerSpec)(options)
    distiller.setup(context)
    judged = check_order(context, bundle.val, observer.owner)
    manifest = _manifest(settings, options, distiller, observer, bundle, context) | {
        "plugin": manager.distiller(settings.method).provider(),
        "versions": versions(),
        "hardware": hardware(),
    }
    manifest["observer"] |= judged
    writer = DistilledWriter(folder, manifest, context)
    return _Work(accelerator, display, observer, context, distiller, writer, _introduction(manifest, bundle, folder))


def _manifest(
    settings: DistillSettings,
    options: Options,
    distiller: Distiller,
    observer: Observer,
    bundle: DataBundle,
    context: DistillContext,
) -> dict[str, Any]:
    """Content of the manifest about the data set, as far as it is known before anything is distilled."""
    from timm_robust.distillation.writer import class_entries

    return {
        "complete": False,
        "method": settings.method,
        "method_args": to_dict(options),
        "settings": distiller.settings(),
        "ipc": settings.ipc,
        "image_size": context.image_size,
        "format": settings.image_format,
        "seed": settings.seed,
        "source": _source(settings.data, settings.data_dir),
        "observer": {
            "name": observer.name,
            "method": observer.metadata.get("method"),
            "threat": observer.metadata.get("threat"),
        },
        "classes": class_entries(bundle.class_names, context.observer.columns),
        "held_out": None if bundle.val_indices is None else bundle.val.source_names,
        "precision": settings.precision,
        "batch_size": settings.batch_size,
    }


def _introduction(manifest: Mapping[str, Any], bundle: DataBundle, folder: RunFolder) -> str:
    """What is about to be made, in two lines."""
    observer = manifest["observer"]
    return (
        f"{manifest['method']} on {bundle.name}: {manifest['ipc']} images of {manifest['image_size']} pixels for each "
        f"of {len(bundle.class_names)} classes, of {len(bundle.train)} training images\nobserver {observer['name']}: "
        f"{observer['accuracy']:.1%} of {observer['images']} held-out images, its classes are in order; seed "
        f"{manifest['seed']}, output {folder.path}"
    )


def _run(work: _Work) -> None:
    """Distils this process's share of the classes; the first process begins and completes the folder."""
    accelerator, writer = work.accelerator, work.writer
    work.display.say(work.introduction)
    if accelerator.is_main_process:
        writer.begin(work.observer)
    accelerator.wait_for_everyone()
    mine = range(accelerator.process_index, len(work.context.class_names), accelerator.num_processes)
    with work.display.bar("distilling", 1):
        for made in work.distiller.distill([number for number in mine if not writer.done(number)]):
            writer.write(made)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        writer.finish(accelerator.num_processes)
    accelerator.wait_for_everyone()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Content of the manifest; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((folder / MANIFEST).read_text()))
    return {}


def _default_output(settings: DistillSettings, resume: bool) -> Path:
    if resume:
        raise UserError("resume needs the folder of the distillation to continue: pass output")
    source = Path(settings.data).stem if isinstance(settings.data, (str, Path)) else "data"
    path = Path("runs") / f"{settings.method}-{source}-ipc{settings.ipc}".replace("/", "_").lower()
    return free_folder(path) if path.exists() else path


def _source(data: Any, data_dir: str | None) -> dict[str, str | None]:
    """Where the data set is, so that its validation and test images are found from any working directory."""
    if not isinstance(data, (str, os.PathLike)):
        return {"data": None, "data_dir": None}
    from timm_robust.data.read import is_known

    name = os.fspath(data)
    path = Path(name).expanduser()
    root = None if data_dir is None or "://" in data_dir else str(Path(data_dir).expanduser().resolve())
    return {"data": name if is_known(name) else str(path.resolve()), "data_dir": root or data_dir}
