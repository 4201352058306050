"""Classifier of pixels: normalisation and network in one module, with the configuration that rebuilds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from timm_robust.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build a network again: plain values that JSON can hold.

    `timm.create_model(architecture, num_classes=num_classes, **model_kwargs)` has exactly the weights of the configured
    network; stem and activations change no weight's shape, and `rebuild` applies them.
    """

    architecture: str | None
    """timm name; None for a module of one's own."""
    module_class: str | None = None
    """`module:Class` of a module of one's own."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for `timm.create_model`: those given, those that the stem added, and in_chans unless it is 3."""
    num_classes: int
    in_chans: int
    image_size: int
    mean: list[float]
    std: list[float]
    stem: dict[str, Any] = field(default_factory=dict)
    """Surgery for `apply_stem`; empty: none."""
    activation: str | None = None
    """Activation swapped in, with its parameter, such as `psoftplus:10`."""
    registered_by: str | None = None
    """Module that registers the architecture with timm when imported; None for timm's own."""
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
                raise unknown("entry in the model configuration", name, known)
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"incomplete model configuration: {error}") from error


class PixelModel(nn.Module):
    """Classifier of pixels: takes images in [0, 1], normalises them, returns logits.

    Attributes:
        model: inner network; its state dict loads strictly into the plain timm model.
        config: configuration from which `rebuild` makes it again.
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
