"""Contract of a distiller, which turns the training images of a data set into a few images per class.

    distiller.setup(context)                        # refuses what cannot be done, before any work
    for made in distiller.distill([0, 1, 2, ...]):  # one class after the other, yielded as soon as it is done
        ... the host writes its images, soft labels and record

A class is the unit of work: it is written as soon as it is yielded, a killed distillation goes on with the classes that
are missing, and several processes share the classes. So the images of a class may depend on the seed, the options and
its own training images only, not on other classes or on the process that makes them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from timm_robust.data import Split
    from timm_robust.models.class_order import ClassAlignedModel
    from timm_robust.options import Options
    from timm_robust.threat import Threat
    from timm_robust.utils.progress import Progress


@dataclass(frozen=True)
class Patch:
    """Part of a real image that became part of a distilled one.

    Attributes:
        source: name of the real image, as `Split.name` gives it.
        box: top, left, height and width, in pixels of the stored image.
        score: score that it was chosen by, higher is better; None if nothing was scored.
    """

    source: str
    box: tuple[int, int, int, int]
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for patches.jsonl."""
        score = None if self.score is None else float(f"{self.score:.6g}")
        return {"source": self.source, "box": list(self.box), "score": score}


@dataclass(frozen=True)
class DistilledClass:
    """Distilled images of one class.

    Attributes:
        number: class number.
        pixels: uint8 [ipc, size, size, 3].
        patches: for each image the patches that it is made of.
        about: numbers about the class, for the manifest.
    """

    number: int
    pixels: np.ndarray
    patches: Sequence[Sequence[Patch]]
    about: dict[str, float] = field(default_factory=dict)


@dataclass
class DistillContext:
    """What a distiller may know.

    Attributes:
        train: real training images, streamed; without those held out for validation.
        class_names: names of all classes; their order gives the class numbers.
        ipc: images per class.
        image_size: side of the distilled images, in pixels.
        observer: trained network, in eval mode: images in [0, 1] -> logits [N, K] of the data's classes.
        threat: threat model that the observer was trained against, or the default for the image size.
        device: device of the observer.
        seed: random seed.
        batch_size: images per forward pass of the observer.
        workers: number of processes that read images; None: chosen by the loader.
        autocast: factory of the context in which the observer runs (mixed precision).
        progress: callback(name, done so far, total).
        seconds: time spent, by activity; see `timed`.
    """

    train: Split
    class_names: tuple[str, ...]
    ipc: int
    image_size: int
    observer: ClassAlignedModel
    threat: Threat
    device: torch.device
    seed: int = 0
    batch_size: int = 256
    workers: int | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    progress: Progress = lambda name, done, total, status="": None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time spent inside to `seconds[what]`, which the manifest reports."""
        started = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started


class Distiller:
    """Base class of distillers.

    Args:
        options: frozen options of the distiller.
    """

    context: DistillContext

    def __init__(self, options: Options) -> None:
        self.options = options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options})"

    def setup(self, context: DistillContext) -> None:
        """Called once, before anything is written.

        Raises:
            UserError: options that this data cannot serve.
        """
        self.context = context

    def settings(self) -> dict[str, Any]:
        """Values that the options resolve to for this data, for the manifest and for methods that train on it."""
        return {}

    def distill(self, classes: Sequence[int]) -> Iterator[DistilledClass]:
        """Makes the images of some classes, in that order."""
        raise NotImplementedError
