"""The network that judges images for a distiller and labels them for a student, and whether it knows these classes.

Class numbers mean nothing by themselves: an observer whose classes are in another order judges every image by a wrong
label, and nothing fails but the result. So classes are matched by name where both sides have names, and the outcome is
tried on real images before anything is distilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import is_model
from torch import nn

from timm_robust.data import Split, make_eval_loader
from timm_robust.data.images import SomeImages
from timm_robust.errors import UserError, nearest
from timm_robust.models.factory import build_model
from timm_robust.models.pixel_model import PixelModel
from timm_robust.runs.checkpoint import load, read_metadata
from timm_robust.utils.environment import versions

PROBES = 4000
"""Images that try the order of the classes, in all; a class has at least 4 of them and at most 20."""


def open_observer(name: str, image_size: int | None = None) -> tuple[PixelModel, dict[str, Any]]:
    """A trained network, and its model card.

    Args:
        name: a run's folder or a checkpoint, else a timm name, whose pretrained weights are taken.
        image_size: pixels of a side; by default those that it was trained on.

    Raises:
        UserError: neither, no weights, or a checkpoint of another image size.
    """
    if Path(name).expanduser().exists():
        path = Path(name).expanduser()
        metadata = read_metadata(path)
        trained = metadata["model"]["image_size"]
        if image_size not in (None, trained):
            raise UserError(f"observer {name!r} was trained on {trained} pixels, image_size is {image_size}")
        return load(path).requires_grad_(False), metadata
    if not is_model(name.split(".")[0]):
        close = nearest(name, dict.fromkeys(one.split(".")[0] for one in timm.list_models(pretrained=True)), n=1)
        hint = f"did you mean {close[0]}?" if close else "expected a run's folder or a timm model with weights"
        raise UserError(f"observer {name!r} is neither a checkpoint nor a timm model: {hint}")
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        raise UserError(f"observer {name!r} has no pretrained weights in timm: expected a run's folder")
    network = build_model(
        name,
        num_classes=cfg.num_classes,
        image_size=image_size or cfg.input_size[-1],
        pretrained=True,
        stem="none",
        data_mean=cfg.mean,
        data_std=cfg.std,
    )
    subset = infer_imagenet_subset({"num_classes": cfg.num_classes})
    info = ImageNetInfo(subset) if subset else None
    names = [info.index_to_label_name(number) for number in range(cfg.num_classes)] if info else None
    metadata = {
        "method": "standard",
        "data": {"name": subset, "class_names": names, "image_size": network.config.image_size},
        "versions": versions(),
    }
    return network.eval().requires_grad_(False), metadata


def probes(split: Split) -> Split:
    """A few images of every class, in the order of the split; streamed."""
    classes = len(np.unique(split.labels))
    each = min(20, max(4, PROBES // classes))
    order = np.argsort(split.labels, kind="stable")
    labels = split.labels[order]
    starts = np.searchsorted(labels, labels)  # for each image where its class begins
    chosen = np.sort(order[np.arange(len(labels)) - starts < each])
    return Split(SomeImages(split.images, chosen), split.labels[chosen], split.image_size)


@torch.no_grad()
def predictions(
    observer: nn.Module, split: Split, *, batch_size: int, device: torch.device, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What a network takes images for, and their classes, int64 [N] each."""
    found = [
        (observer(batch.images).argmax(1).cpu(), batch.targets.cpu())
        for batch in make_eval_loader(split, batch_size=batch_size, device=device, workers=workers)
    ]
    predicted, targets = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    return predicted, targets


def require_order(predicted: np.ndarray, targets: np.ndarray, class_names: Sequence[str], *, owner: str) -> float:
    """Accuracy of an observer on a few images per class; refuses one whose classes are not those of the data.

    They are not where its accuracy cannot be told from chance, or where other numbers for its classes would do better:
    numbers found on every other image are tried on the images between, so a weak observer gains nothing by them.

    Args:
        predicted, targets: int64 [N].
        class_names: of the data, in order.
        owner: for the message ("observer 'runs/standard'").

    Raises:
        UserError: the order of the classes does not fit; says which, and how accurate it is and would be.
    """
    n, classes = len(targets), len(class_names)
    correct = float(np.mean(predicted == targets))
    half = np.arange(n) % 2 == 0
    order = np.argsort(targets, kind="stable")  # so that both halves have images of every class
    learn, judge = order[half], order[~half]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predicted[learn], targets[learn]), 1)
    renamed = np.where(counts.sum(1) > 0, counts.argmax(1), np.arange(classes))
    better = float(np.mean(renamed[predicted[judge]] == targets[judge]))
    as_it_is = float(np.mean(predicted[judge] == targets[judge]))
    if better - as_it_is > 3 * max(better * (1 - better) / len(judge), 1 / n**2) ** 0.5:
        wrong = [number for number in range(classes) if counts[number].sum() and renamed[number] != number]
        example = max(wrong, key=lambda number: counts[number].max())
        raise UserError(
            f"{owner} has its classes in another order than the data: it is right on {as_it_is:.1%} of {len(judge)} "
            f"images, and on {better:.1%} if its classes had other numbers (what it calls {class_names[example]!r} is "
            f"mostly {class_names[renamed[example]]!r}): give the folders the names that it was trained with"
        )
    chance = 1 / classes
    if correct <= chance + 2 * (chance * (1 - chance) / n) ** 0.5:
        raise UserError(
            f"{owner} is right on {correct:.1%} of {n} images of this data, which cannot be told from chance: expected "
            "a network trained on these classes, in this order"
        )
    return correct
