"""Random real images, equally many per class: the baseline of distilled data of the same size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from timm_robust.data.augment import stream
from timm_robust.data.streaming import Stream
from timm_robust.distiller import DistillContext, DistilledClass, Distiller, Patch
from timm_robust.errors import UserError

DRAWS = 103
"""Key of the random stream that draws the images; distinct from the loaders'."""


class RandomImages(Distiller):
    """Draws images, each whole, resized and cropped as for evaluation."""

    def setup(self, context: DistillContext) -> None:
        super().setup(context)
        counts = np.bincount(context.train.labels, minlength=len(context.class_names))
        if counts.min() < context.ipc:
            few = context.class_names[int(counts.argmin())]
            raise UserError(f"class {few!r} has {counts.min()} training images: lower ipc, which is {context.ipc}")

    def distill(self, classes: Sequence[int]) -> Iterator[DistilledClass]:
        context = self.context
        drawn = [self._drawn(number) for number in classes]
        batches = Stream(
            context.train.images,
            context.train.labels,
            context.image_size,
            workers=context.workers,
            device=context.device,
        ).batches(drawn)
        for done, (number, batch) in enumerate(zip(classes, batches, strict=True), 1):
            places = batch.numbers[: context.ipc, 0].tolist()
            if len(places) < context.ipc:
                raise UserError(f"class {context.class_names[number]!r} has too many unreadable images: lower ipc")
            patches = []
            for place in places:
                width, height = context.train.images.shape(place)
                patches.append([Patch(context.train.name(place), (0, 0, height, width))])
            context.progress("drawing images", done, len(classes))
            yield DistilledClass(number, batch.pixels[: context.ipc].numpy(), patches)

    def _drawn(self, number: int) -> np.ndarray:
        """Places of the images, and some more in case that one cannot be read."""
        members = np.flatnonzero(self.context.train.labels == number)
        wanted = self.context.ipc + self.context.ipc // 10 + 1
        return stream(self.context.seed, 0, DRAWS, number).permutation(members)[:wanted]
