"""The classifier of pixels: normalisation and network in one module, with the configuration that rebuilds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from timm_robust.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to make a network again: plain values that JSON can hold.

    `timm.create_model(architecture, num_classes=num_classes, **model_kwargs)` has exactly the weights of the record's
    network; stem and activations change no weight's shape and are replayed by `rebuild`.
    """

    architecture: str | None
    """timm name; None for the user's own module."""
    module_class: str | None = None
    """`module:Class` of the user's own module."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """For `timm.create_model`: the user's, what the stem added, and in_chans where it is not 3."""
    num_classes: int
    in_chans: int
    image_size: int
    mean: list[float]
    std: list[float]
    stem: dict[str, Any] = field(default_factory=dict)
    """Recorded surgery; empty when there was none."""
    activation: str | None = None
    """Name of the swap with its parameter, such as `psoftplus:10`."""
    registered_by: str | None = None
    """Module to import so that timm knows the architecture, when it is not timm's own."""
    pretrained: bool | str = False
    """Tag of the weights that training started from; information only."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
            UserError: a value is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("entry in the model record", name, known)
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"incomplete model record: {error}") from error


class PixelModel(nn.Module):
    """A classifier of pixels: takes images in [0, 1], normalises them, returns logits.

    Attributes:
        model: the inner network; its state dict loads strictly into the bare timm model.
        config: how to make it again.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images.

        Args:
            images: [N, C, H, W], values in [0, 1].

        Returns:
            [N, num_classes].
        """
        return _main_logits(self.model((images - self.mean) / self.std), self.model)


def _main_logits(output: Any, model: nn.Module) -> torch.Tensor:
    """The classifier's logits where a model returns several: auxiliary heads are dropped, distilled heads averaged."""
    if not isinstance(output, (tuple, list)):
        return output
    if hasattr(model, "head_dist") and len(output) == 2:
        return (output[0] + output[1]) / 2  # what the model itself does in eval mode
    return output[0]
