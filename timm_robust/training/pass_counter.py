"""Cost of training in forward-backward passes, the unit in which methods are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Part:
    """Passes of a part of a run that is counted separately."""

    passes: float = 0.0


class PassCounter:
    """Counts the images that go forward and backward through a model, whoever calls it.

    A forward and a backward are half a pass each, so standard training costs one pass per image, PGD-10 training 11.

    Args:
        models: networks to count.
        on: whether to count; not in a compiled network, where each new count would trigger a recompilation.

    Attributes:
        images: images forward plus images backward.
    """

    def __init__(self, *models: nn.Module, on: bool = True) -> None:
        self.images = 0
        for model in models if on else ():
            model.register_forward_hook(self._forward)

    @property
    def passes(self) -> float:
        """Image passes so far, forward and backward together as one."""
        return self.images / 2

    @contextmanager
    def paused(self) -> Iterator[Part]:
        """Counts what runs inside separately, such as a measurement; the part holds its passes afterwards."""
        before, part = self.images, Part()
        try:
            yield part
        finally:
            part.passes, self.images = (self.images - before) / 2, before

    def _forward(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        images = len(output)  # a hook that holds `output` itself would keep it alive for ever
        self._add(images)
        if output.requires_grad:
            output.register_hook(lambda _: self._add(images))

    def _add(self, images: int) -> None:
        self.images += images
