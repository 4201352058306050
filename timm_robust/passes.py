"""Counts what training costs, in forward-backward passes: the unit in which methods are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class PassCounter:
    """Counts the images that go forward and backward through a model, whoever calls it.

    A forward and a backward are half a pass each, so standard training costs one pass per image, PGD-10 training 11.

    Args:
        model: whose calls are counted.
        on: False counts nothing: in a compiled network every count would be a reason to compile it again.

    Attributes:
        images: images forward plus images backward.
    """

    def __init__(self, model: nn.Module, on: bool = True) -> None:
        self.images = 0
        self._on = on
        if on:
            model.register_forward_hook(self._forward)

    @property
    def passes(self) -> float:
        """Image passes so far, forward and backward together as one."""
        return self.images / 2

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is measured and not trained."""
        on, self._on = self._on, False
        try:
            yield
        finally:
            self._on = on

    def _forward(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        if self._on:
            images = len(output)  # a hook that holds `output` itself would never be freed
            self._add(images)
            if output.requires_grad:
                output.register_hook(lambda _: self._add(images))

    def _add(self, images: int) -> None:
        self.images += images
