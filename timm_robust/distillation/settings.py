"""Settings of a distillation, kept in its manifest and compared when it is resumed. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_robust.errors import UserError, unknown

IMAGE_FORMATS = {"png": ".png", "jpeg": ".jpg"}
"""File extension of each image format: lossless, or JPEG in Pillow's default quality."""


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Arguments of `distill` that say what is made, not where and how fast.

    The fields' names are entries of the manifest: a renamed one keeps older distillations from being resumed.
    """

    data: Any
    method: str
    observer: str | Path | None
    ipc: int
    method_args: Mapping[str, Any] | None
    image_size: int | None
    image_format: str
    data_dir: str | None
    download: bool
    seed: int
    batch_size: int
    precision: str
    device: str | None

    def require_valid(self) -> None:
        """Checks what can be checked without loading anything.

        Raises:
            UserError: a value that cannot be right.
        """
        if self.observer is None:
            raise UserError(
                "no observer: name a run's folder, such as one of timm-robust train --method standard, or a timm model"
            )
        if isinstance(self.ipc, bool) or not isinstance(self.ipc, int) or self.ipc < 1:
            raise UserError(f"ipc is {self.ipc!r}: expected a whole number of images per class, such as 10")
        if self.image_format not in IMAGE_FORMATS:
            raise unknown("image format", self.image_format, IMAGE_FORMATS)
        if self.batch_size < 1:
            raise UserError(f"batch size is {self.batch_size}: expected at least 1")
