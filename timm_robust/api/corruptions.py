"""Accuracy of a checkpoint on common corruptions. Torch-free at import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from timm_robust.api.records import write_record
from timm_robust.utils.allocator import keep_freed_memory
from timm_robust.utils.files import require_place
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from timm_robust.evaluation.corruptions import Corruptions


def corruptions(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    examples: int | None = None,
    only: Sequence[str] | None = None,
    batch_size: int = 250,
    device: str | None = None,
    json: str | Path | None = None,
    quiet: bool = False,
) -> Corruptions:
    """Accuracy of a checkpoint on common corruptions; see `timm_robust.evaluation.corruptions`.

    Args:
        checkpoint: folder of a run or of a checkpoint.
        folder: CIFAR-10-C, CIFAR-100-C, ImageNet-C, or one in their format.
        examples: number of images of each severity; default: all.
        only: names of corruptions; default: all 15.
        batch_size, device: as in `timm_robust.evaluate`.
        json: file of the record.
        quiet: no progress.

    Raises:
        UserError: a mistake in any of these.
    """
    from timm_robust.evaluation.corruptions import CORRUPTIONS, corruption_accuracy, open_corruptions
    from timm_robust.runs.checkpoint import open_checkpoint
    from timm_robust.utils.distributed import own_device

    require_place(json)
    device = device or own_device()
    keep_freed_memory(device)
    opened = open_checkpoint(checkpoint, device=device)
    images = open_corruptions(
        folder,
        tuple(only or CORRUPTIONS),
        class_names=opened.metadata.get("data", {}).get("class_names"),
        image_size=opened.metadata["model"]["image_size"],
    )
    with Display(quiet).measuring() as progress:
        found = corruption_accuracy(opened.model, images, examples, batch_size=batch_size, progress=progress)
    write_record(json, {"checkpoint": str(opened.folder), **found.to_dict()})
    return found
