"""Class order of a network: its logits in the order of a data set's classes, matched by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from timm_robust.data.class_order import match_classes
from timm_robust.errors import UserError
from timm_robust.models.pixel_model import ModelConfig, PixelModel


class ClassAlignedModel(nn.Module):
    """Wrapper of a trained network that gives its logits in the order of a data set's classes.

    Args:
        network: images in [0, 1] -> logits of its own classes.
        columns: for each class of the data the number of the network's class; None where they are the same.
    """

    columns: Tensor | None

    def __init__(self, network: PixelModel, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("columns", None if columns is None else torch.tensor(columns), persistent=False)

    @property
    def config(self) -> ModelConfig:
        """Configuration of the network: its own classes, image size and channels."""
        return self.network.config

    @property
    def mean(self) -> Tensor:
        """Pixel value that the network's normalisation maps to 0, [1, C, 1, 1] in [0, 1]."""
        return self.network.mean

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        logits = self.network(images)
        return logits if self.columns is None else logits[:, self.columns]


def class_columns(known: Sequence[str] | None, wanted: Sequence[str], count: int, *, owner: str) -> list[int] | None:
    """For each class of some data the number of the network's class; None where they are the same.

    Matched as `match_classes` says; by number only where there are equally many.

    Args:
        known: names of the network's classes, in its order; None where it has none.
        wanted: names of the data's classes, in their order.
        count: number of the network's classes.
        owner: owner of the network, for the message ("observer 'resnet18'").

    Raises:
        UserError: other names, or no names and another number of classes.
    """
    remedy = "expected a network trained on these classes, or class folders with the names that it was trained with"
    numbers = match_classes(known, wanted, owner=owner, data="this data", remedy=remedy)
    if numbers is None and count != len(wanted):
        raise UserError(
            f"{owner} was trained on {count} classes, this data has {len(wanted)}, and there are no names to match: "
            f"{remedy}"
        )
    return None if numbers == list(range(count)) else numbers
