"""Who has the last word: the original model in float32 on an image that was checked to be inside the threat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.threat import Threat

SLACK = 1e-6
"""How far beyond the radius rounding may carry a projected image, as a share of the pixel range."""


class Judge:
    """Confirms falls, and keeps the adversarial images.

    Args:
        model: the original, in eval mode.
        images: float [N, C, H, W] in [0, 1].
        targets: int64 [N].
        threat: Linf or L2.
        batch_size: images at once.

    Attributes:
        adversarial: [N, C, H, W] on the images' device; the clean image where nothing was confirmed.
    """

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor, threat: Threat, batch_size: int) -> None:
        parameter = next(model.parameters(), None)
        self.model, self.images, self.targets, self.threat = model, images, targets, threat
        self.batch_size = batch_size
        self.device = images.device if parameter is None else parameter.device
        self.adversarial = images.clone()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits of the original, [N, K] on the CPU."""
        with torch.autocast(self.device.type, enabled=False), full_float32():
            return torch.cat([self.model(part.to(self.device)).cpu() for part in images.split(self.batch_size)])

    @torch.no_grad()
    def __call__(self, rows: Tensor, points: Tensor) -> Tensor:
        """Which of these points, projected, the original misclassifies.

        Args:
            rows: int64 [n], the image of each point; an image may come twice.
            points: [n, C, H, W].

        Returns:
            bool [n] on the CPU.
        """
        clean = self.images[rows.to(self.images.device)].to(self.device)
        final = projected(points.to(self.device, clean.dtype), clean, self.threat)
        targets = self.targets[rows.to(self.targets.device)].cpu()
        fell = (self.logits(final).argmax(1) != targets) & allowed(final, clean, self.threat).cpu()
        kept = final[fell.to(final.device)].to(self.adversarial)
        self.adversarial[rows[fell].to(self.adversarial.device)] = kept.contiguous()
        return fell


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products in float32 and not TF32, which a GPU uses for convolutions unless told."""
    backends: Any = torch.backends
    # torch keeps these settings under old names and, since 2.9, under new ones too; it wants the two to agree
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


def projected(points: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    """The points inside the ball around the clean images and inside [0, 1]."""
    if threat.norm == "Linf":
        return torch.minimum(torch.maximum(points, clean - threat.eps), clean + threat.eps).clamp(0, 1).contiguous()
    delta = points - clean
    size = delta.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return (clean + delta * (threat.eps / size).clamp(max=1)).clamp(0, 1).contiguous()


def allowed(points: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    """Whether each point is in the ball and in [0, 1], bool [n], reckoned in float64; NaN is not."""
    delta = (points.double() - clean.double()).flatten(1)
    size = delta.abs().amax(1) if threat.norm == "Linf" else delta.norm(dim=1)
    flat = points.flatten(1)
    return (size <= threat.eps + SLACK) & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
