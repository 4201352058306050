"""Random views of images for contrastive training: shift or crop, colour jitter, greyscale. Batched on the device.

After AMDIM's augmentation for CIFAR-10 (P. Bachman et al., arXiv:1906.00910) and SSAT's for STL-10. Mirroring is left
to the recipe, since both views share it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOVED, RECOLOURED = 0.8, 0.8
"""Fractions of the views that are shifted, and whose colours change."""

LUMA = (0.299, 0.587, 0.114)

YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def random_view(images: Tensor, *, translate: int, min_scale: float, jitter: float, grey: float) -> Tensor:
    """One view of each image.

    Args:
        images: float [B, C, H, W] in [0, 1].
        translate: maximum shift in pixels; borders are reflected.
        min_scale: minimum area of a random crop, as a fraction of the image's; at 1 views are shifted instead.
        jitter: maximum relative change of brightness, contrast and saturation; hue turns by up to half of it.
        grey: fraction of greyscale views.

    Returns:
        views like `images`; colours change only with three channels.
    """
    views = _cropped(images, min_scale) if min_scale < 1 else _shifted(images, translate)
    if images.shape[1] == 3 and (jitter or grey):
        changed = _recoloured(views, jitter)
        views = torch.where(_coins(views, RECOLOURED), changed, views)
        views = torch.where(_coins(views, grey), _luma(views).expand_as(views), views)
    return views.clamp(0, 1)


def _shifted(images: Tensor, most: int) -> Tensor:
    if not most:
        return images
    size = torch.tensor(images.shape[:1:-1], device=images.device)  # width, height
    shift = torch.randint(-most, most + 1, (len(images), 2), device=images.device)
    shift = shift * _coins(images, MOVED).view(-1, 1)
    return _warped(images, torch.ones(len(images), 2, device=images.device), 2 * shift / size)


def _cropped(images: Tensor, min_scale: float) -> Tensor:
    area = _uniform(images, min_scale, 1.0, (len(images),))
    ratio = _uniform(images, math.log(0.7), math.log(1.4), (len(images),)).exp()
    part = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)
    return _warped(images, part, (1 - part) * _uniform(images, -1.0, 1.0, (len(images), 2)))


def _warped(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Crop of each image with `scale` of its sides, `shift` half sides off the centre; both [B, 2], as (x, y)."""
    theta = torch.cat([torch.diag_embed(scale), shift[:, :, None]], 2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _recoloured(images: Tensor, jitter: float) -> Tensor:
    brightness, contrast, saturation = (_uniform(images, 1 - jitter, 1 + jitter) for _ in range(3))
    images = (images * brightness).clamp(0, 1)
    mean = _luma(images).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    luma = _luma(images)
    images = (luma + (images - luma) * saturation).clamp(0, 1)
    return _turned(images, math.pi * _uniform(images, -jitter, jitter).flatten())


def _turned(images: Tensor, angle: Tensor) -> Tensor:
    """Colours rotated about the grey axis by an angle [B], in YIQ: linear, and close to a hue rotation."""
    to_yiq = torch.tensor(YIQ, dtype=images.dtype, device=images.device)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(to_yiq) @ turn @ to_yiq, images)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def _coins(images: Tensor, share: float) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device) < share


def _uniform(images: Tensor, low: float, high: float, shape: tuple[int, ...] | None = None) -> Tensor:
    shape = (len(images), 1, 1, 1) if shape is None else shape
    return torch.empty(shape, dtype=images.dtype, device=images.device).uniform_(low, high)
