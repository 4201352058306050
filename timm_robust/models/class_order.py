"""Class order: a network's logits in the order of some data's classes, matched by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from timm_robust.errors import UserError
from timm_robust.models.pixel_model import PixelModel


class ClassAlignedModel(nn.Module):
    """A trained network that gives its logits in the order of some data's classes.

    Args:
        network: images in [0, 1] -> logits of its own classes.
        columns: for each class of the data the number of the network's; None where they are the same.
    """

    columns: Tensor | None

    def __init__(self, network: PixelModel, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("columns", None if columns is None else torch.tensor(columns), persistent=False)

    @property
    def mean(self) -> Tensor:
        """What the network takes as 0, [1, C, 1, 1] in [0, 1]."""
        return self.network.mean

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        logits = self.network(images)
        return logits if self.columns is None else logits[:, self.columns]


def class_columns(known: Sequence[str] | None, wanted: Sequence[str], count: int, *, owner: str) -> list[int] | None:
    """For each class of some data the number of the network's class; None where they are the same.

    By name where the network knows all the names (ImageNet's are WordNet numbers such as n01440764), else by number.

    Args:
        known: names of the network's classes, in its order; None where it has none.
        wanted: names of the data's classes, in their order.
        count: classes of the network.
        owner: for the message ("observer 'resnet18'").

    Raises:
        UserError: other names, and another number of classes.
    """
    if known is not None and set(wanted) <= set(known):
        places = {name: number for number, name in enumerate(known)}
        columns = [places[name] for name in wanted]
        return None if columns == list(range(count)) else columns
    if count != len(wanted):
        raise UserError(f"{owner} was trained on {count} classes, this data has {len(wanted)} and other names")
    return None
