"""The inputs of an evaluation: model, test images, labels and threat model, checked once and passed whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.data.batch import Batch
from timm_robust.errors import UserError
from timm_robust.evaluation.hashes import weights_hash
from timm_robust.evaluation.preconditions import (
    device_of,
    output_warnings,
    require_deterministic,
    require_eval,
    require_finite,
    require_pixels,
)
from timm_robust.threat import Threat


@dataclass(frozen=True, eq=False)
class EvalInputs:
    """A model, the test images it is evaluated on, and the threat model.

    Making one checks it: one forward pass of all images, and two of the first eight.

    Attributes:
        model: in eval mode, images in [0, 1] to logits.
        images: float [N, C, H, W] in [0, 1], on any device.
        targets: int64 [N], class numbers of the model.
        threat: ball that attacks are held to.
        name: checkpoint folder, or the model's name.
        data: name of the data set.
        metadata: content of model.json; empty for a model without.
        device: of the model.
        num_classes: K of the logits [N, K].
        warnings: doubts about the model's outputs, a sentence each.
        indices: int64 [N], number of each image in the whole data set; the fast mode's draws are keyed by it.

    Args:
        random_outputs: accept a model whose outputs are random.
        batch_size: images per forward pass of the check.

    Raises:
        UserError: a model in train mode, not deterministic, with logits that are not finite or with weights that take
            no such images; no images, pixels outside [0, 1], or labels that the model lacks.
    """

    model: nn.Module
    images: Tensor
    targets: Tensor
    threat: Threat
    name: str = ""
    data: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    random_outputs: InitVar[bool] = False
    batch_size: InitVar[int] = 250
    device: torch.device = field(init=False)
    num_classes: int = field(init=False)
    warnings: tuple[str, ...] = field(init=False)
    indices: Tensor = field(init=False)

    def __post_init__(self, random_outputs: bool, batch_size: int) -> None:
        require_eval(self.model)
        require_pixels(self.images)
        logits = require_finite(self.model, self.images, batch_size=batch_size)
        classes = logits.shape[1]
        if (highest := int(self.targets.max())) >= classes:
            raise UserError(f"the data has class number {highest}, the model has only {classes} classes")
        if not random_outputs:
            require_deterministic(self.model, self.images)
        self._set(
            device=device_of(self.model, self.images),
            num_classes=classes,
            warnings=output_warnings(logits),
            indices=torch.arange(len(self.images)),
        )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def weights(self) -> str:
        """Hash of the model's weights."""
        return weights_hash(self.model)

    def subset(self, rows: Tensor | slice) -> EvalInputs:
        """The same inputs with some of the images; a slice copies no pixels.

        Args:
            rows: int64 [n], or a slice.
        """
        images, targets = (
            part[rows if isinstance(rows, slice) else rows.to(part.device)] for part in (self.images, self.targets)
        )
        kept = self.indices[rows if isinstance(rows, slice) else rows.cpu()]
        return copy.copy(self)._set(images=images, targets=targets, indices=kept)

    def with_threat(self, threat: Threat) -> EvalInputs:
        """The same inputs under another threat."""
        return copy.copy(self)._set(threat=threat)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` images in order, one at a time on the model's device."""
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            yield Batch(self.images[part].to(self.device), self.targets[part].to(self.device), self.indices[part])

    def _set(self, **values: Any) -> EvalInputs:
        # what was checked stays true of a part, and of the same images under another threat
        for name, value in values.items():
            object.__setattr__(self, name, value)
        return self
