"""Observer of a distillation: the network that chooses images for the distiller and labels them for the student.

An observer whose classes are in another order judges every image by a wrong label, and nothing fails but the result. So
classes are matched by name (`data.class_order`), and the order is checked on real images before anything is distilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from timm_robust.distiller import DistillContext
from timm_robust.errors import UserError, nearest
from timm_robust.models.class_order import ClassAlignedModel, class_columns
from timm_robust.models.factory import build_model
from timm_robust.models.pixel_model import PixelModel
from timm_robust.runs.checkpoint import load, read_metadata
from timm_robust.threat import Threat, make_threat
from timm_robust.utils.environment import versions

PROBES = 4000
"""Images that check the order of the classes, in total; at least 4 and at most 20 per class."""


@dataclass(frozen=True)
class Observer:
    """Trained network with its metadata.

    Attributes:
        name: run's folder, checkpoint or timm name.
        network: in eval mode, frozen: images in [0, 1] -> logits of its own classes.
        metadata: content of model.json, or its equivalent for timm's weights.
    """

    name: str
    network: PixelModel
    metadata: dict[str, Any]

    @property
    def owner(self) -> str:
        """Name for messages."""
        return f"observer {self.name!r}"

    @property
    def threat(self) -> Threat:
        """Threat model that the network was trained against; the default for its image size if there was none."""
        trained = self.metadata.get("threat") or {}
        size = self.network.config.image_size
        return make_threat(trained.get("norm", "Linf"), trained.get("eps_text"), image_size=size)

    def aligned(self, class_names: Sequence[str]) -> ClassAlignedModel:
        """The network with its logits in the order of these classes, channels last, in eval mode.

        Raises:
            UserError: its classes are others.
        """
        known = (self.metadata.get("data") or {}).get("class_names")
        columns = class_columns(known, class_names, self.network.config.num_classes, owner=self.owner)
        network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return ClassAlignedModel(network, columns).eval()


def open_observer(name: str, image_size: int | None = None) -> Observer:
    """Loads an observer.

    Args:
        name: run's folder or checkpoint, else a timm name, whose pretrained weights are loaded.
        image_size: side in pixels; default: that of its training.

    Raises:
        UserError: neither, no weights, or a checkpoint of another image size.
    """
    if Path(name).expanduser().exists():
        return _from_checkpoint(name, image_size)
    if not is_model(name.split(".")[0]):
        close = nearest(name, dict.fromkeys(one.split(".")[0] for one in timm.list_models(pretrained=True)), n=1)
        hint = f"did you mean {close[0]}?" if close else "expected a run's folder or a timm model with weights"
        raise UserError(f"observer {name!r} is neither a checkpoint nor a timm model: {hint}")
    return _from_timm(name, image_size)


def _from_checkpoint(name: str, image_size: int | None) -> Observer:
    path = Path(name).expanduser()
    metadata = read_metadata(path)
    trained = metadata["model"]["image_size"]
    if image_size not in (None, trained):
        raise UserError(f"observer {name!r} was trained on {trained} pixels, image_size is {image_size}")
    return Observer(name, load(path).requires_grad_(False), metadata)


def _from_timm(name: str, image_size: int | None) -> Observer:
    """timm's pretrained network; ImageNet's classes are named by their WordNet numbers, as in its folders."""
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
    return Observer(name, network.eval().requires_grad_(False), metadata)


def probes(split: Split) -> Split:
    """A few images of each class, in the order of the split; streamed."""
    classes = len(np.unique(split.labels))
    each = min(20, max(4, PROBES // classes))
    order = np.argsort(split.labels, kind="stable")
    labels = split.labels[order]
    starts = np.searchsorted(labels, labels)  # for each image the place where its class begins
    chosen = np.sort(order[np.arange(len(labels)) - starts < each])
    return Split(SomeImages(split.images, chosen), split.labels[chosen], split.image_size)


@torch.no_grad()
def predictions(
    observer: nn.Module, split: Split, *, batch_size: int, device: torch.device, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes, int64 [N] each."""
    found = [
        (observer(batch.images).argmax(1).cpu(), batch.targets.cpu())
        for batch in make_eval_loader(split, batch_size=batch_size, device=device, workers=workers)
    ]
    predicted, targets = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    return predicted, targets


def require_order(predicted: np.ndarray, targets: np.ndarray, class_names: Sequence[str], *, owner: str) -> float:
    """Accuracy of an observer on a few images per class; refuses one whose classes are not those of the data.

    They are not if its accuracy cannot be told from chance, or if another numbering of its classes would do better:
    the numbering is found on every other image and tested on the images between, so a weak observer gains nothing by
    it.

    Args:
        predicted, targets: int64 [N].
        class_names: class names of the data, in order.
        owner: name of the observer for messages ("observer 'runs/standard'").

    Raises:
        UserError: the order of the classes does not fit; says the first class, and the accuracy with either numbering.
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


def check_order(context: DistillContext, val: Split, owner: str) -> dict[str, Any]:
    """Accuracy of a distillation's observer on a few held-out images of each class, and their number.

    Args:
        context: context of the distillation, with the observer.
        val: held-out images.
        owner: name of the observer for messages.

    Raises:
        UserError: see `require_order`.
    """
    with context.autocast():
        predicted, targets = predictions(
            context.observer,
            probes(val),
            batch_size=context.batch_size,
            device=context.device,
            workers=context.workers,
        )
    accuracy = require_order(predicted, targets, context.class_names, owner=owner)
    return {"accuracy": round(accuracy, 4), "images": len(targets)}
