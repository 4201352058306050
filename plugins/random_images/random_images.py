"""Real images drawn at random, as many of each class: what a distilled data set of the same size has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from timm_robust.data.augment import stream
from timm_robust.data.streaming import Stream
from timm_robust.distiller import DistillContext, DistilledClass, Distiller, Patch
from timm_robust.errors import UserError

DRAWS = 103
"""Key of the random stream that draws the images, apart from those of the loaders."""


class RandomImages(Distiller):
    """Draws images; each is whole, scaled and cropped as for an evaluation."""

    def setup(self, task: DistillContext) -> None:
        super().setup(task)
        counts = np.bincount(task.train.labels, minlength=len(task.class_names))
        if counts.min() < task.ipc:
            few = task.class_names[int(counts.argmin())]
            raise UserError(f"class {few!r} has {counts.min()} training images: lower ipc, which is {task.ipc}")

    def distill(self, classes: Sequence[int]) -> Iterator[DistilledClass]:
        task = self.task
        drawn = [self._drawn(number) for number in classes]
        arriving = Stream(
            task.train.images, task.train.labels, task.image_size, workers=task.workers, device=task.device
        ).batches(drawn)
        for done, (number, arrived) in enumerate(zip(classes, arriving, strict=True), 1):
            places = arrived.numbers[: task.ipc, 0].tolist()
            if len(places) < task.ipc:
                raise UserError(f"class {task.class_names[number]!r} has too many unreadable images: lower ipc")
            patches = []
            for place in places:
                width, height = task.train.images.shape(place)
                patches.append([Patch(task.train.name(place), (0, 0, height, width))])
            task.progress("drawing images", done, len(classes))
            yield DistilledClass(number, arrived.pixels[: task.ipc].numpy(), patches)

    def _drawn(self, number: int) -> np.ndarray:
        """Places of the images, and some more in case that one cannot be read."""
        members = np.flatnonzero(self.task.train.labels == number)
        return stream(self.task.seed, 0, DRAWS, number).permutation(members)[: self.task.ipc + self.task.ipc // 10 + 1]
