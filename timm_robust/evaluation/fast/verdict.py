"""Confirmation of adversarial examples with the original float32 model, after projection into the threat ball."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.steps import project
from timm_robust.threat import Threat

SLACK = 1e-6
"""Tolerance of the radius for the rounding of projected images, in units of the [0, 1] range."""


class Judge:
    """Confirms adversarial examples, and stores them.

    Args:
        model: original model, in eval mode.
        images: float [N, C, H, W] in [0, 1].
        targets: int64 [N].
        threat: Linf or L2 threat.
        batch_size: images per forward pass.

    Attributes:
        adversarial: [N, C, H, W] on the images' device; the clean image where none was confirmed.
    """

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor, threat: Threat, batch_size: int) -> None:
        parameter = next(model.parameters(), None)
        self.model, self.images, self.targets, self.threat = model, images, targets, threat
        self.batch_size = batch_size
        self.device = images.device if parameter is None else parameter.device
        self.adversarial = images.clone()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits of the original model, [N, K] on the CPU."""
        with torch.autocast(self.device.type, enabled=False), full_float32():
            return torch.cat([self.model(part.to(self.device)).cpu() for part in images.split(self.batch_size)])

    @torch.no_grad()
    def __call__(self, rows: Tensor, points: Tensor) -> Tensor:
        """Whether the original model misclassifies each point after projection.

        Args:
            rows: int64 [n], image of each point; may repeat.
            points: [n, C, H, W].

        Returns:
            bool [n] on the CPU.
        """
        clean = self.images[rows.to(self.images.device)].to(self.device)
        final = project(points.to(self.device, clean.dtype), clean, self.threat).contiguous()
        targets = self.targets[rows.to(self.targets.device)].cpu()
        fell = (self.logits(final).argmax(1) != targets) & allowed(final, clean, self.threat).cpu()
        kept = final[fell.to(final.device)].to(self.adversarial)
        self.adversarial[rows[fell].to(self.adversarial.device)] = kept.contiguous()
        return fell


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Computes convolutions and matrix products in float32 instead of TF32, a GPU's default for convolutions."""
    backends: Any = torch.backends
    # torch has old names for these settings and, since 2.9, new ones too, and requires them to agree
    old, cuda, cpu = [backends.cudnn, backends.cuda.matmul], [], []
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        cuda = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]
        cpu = [backends.mkldnn.conv, backends.mkldnn.matmul]
    precisions = [place.fp32_precision for place in (*cuda, *cpu)]
    try:
        allowed = [place.allow_tf32 for place in old]
    except RuntimeError:  # set by the new names, after which the old ones cannot be read
        old, allowed = [], []
    try:
        for place in old:
            place.allow_tf32 = False
        for place in cpu if old else (*cuda, *cpu):
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(old, allowed, strict=True):
            place.allow_tf32 = value
        for place, value in zip((*cuda, *cpu), precisions, strict=True):
            place.fp32_precision = value


def allowed(points: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    """Whether each point is inside the ball and inside [0, 1], bool [n], computed in float64; False for NaN."""
    delta = (points.double() - clean.double()).flatten(1)
    size = delta.abs().amax(1) if threat.norm == "Linf" else delta.norm(dim=1)
    flat = points.flatten(1)
    return (size <= threat.eps + SLACK) & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
