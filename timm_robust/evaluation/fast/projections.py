"""The nearest point of a hyperplane inside the box [0, 1]: F. Croce, M. Hein, arXiv:1907.02044, Section 2.1.

Each pixel goes towards the hyperplane by the same length (Linf) or by a length in proportion to its weight (L2), until
it meets the box. How far the hyperplane comes nearer is then a concave, piecewise linear function of one number, and
Newton's method from 0 meets its root from below in a few passes, where sorting all pixels would cost more.
"""

from __future__ import annotations

import torch
from torch import Tensor

PASSES = 30
PASSES_ON_GPU = 10
"""On a GPU looking whether all have converged costs more than some passes."""


def project(points: Tensor, weights: Tensor, residual: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The smallest d that takes points to the hyperplane inside [0, 1]; where none does, the one that comes nearest.

    Args:
        points: [B, C, H, W] in [0, 1].
        weights: [B, C, H, W], normal of the hyperplane.
        residual: [B], <weights, points> - offset: what d has to take away.
        norm: "Linf" or "L2".

    Returns:
        d [B, C, H, W] and its norm [B, 1, 1, 1].
    """
    size = weights.abs()
    away = residual.view(-1, 1, 1, 1).abs()
    up = (weights < 0) == (residual >= 0).view(-1, 1, 1, 1)  # the way of each pixel
    room = torch.where(up, 1 - points, points)
    speed = (size > 0).to(size.dtype) if norm == "Linf" else size
    gain = size * speed
    slope = _sum(gain)
    reach = torch.where(slope > 0, away / slope, torch.zeros_like(away))
    on_gpu = points.device.type != "cpu"
    tolerance = 4 * torch.finfo(points.dtype).eps
    moved = torch.minimum(speed * reach, room)
    for _ in range(PASSES_ON_GPU if on_gpu else PASSES):
        short = away - _sum(size * moved)
        slope = _sum(gain.masked_fill(moved >= room, 0))
        open_rows = (short > tolerance * away) & (slope > 0)
        if not on_gpu and not open_rows.any():
            break
        reach = torch.where(open_rows, reach + short / slope, reach)
        moved = torch.minimum(speed * reach, room)
    length = (
        moved.amax((1, 2, 3), keepdim=True) if norm == "Linf" else moved.square().sum((1, 2, 3), keepdim=True).sqrt()
    )
    return torch.where(up, moved, -moved), length


def _sum(values: Tensor) -> Tensor:
    return values.sum((1, 2, 3), keepdim=True)
