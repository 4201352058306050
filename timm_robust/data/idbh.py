"""IDBH augmentation, batched on the device: flip, CropShift, one colour or shape operation, random erasing.

L. Li and M. Spratling, Data Augmentation Alone Can Improve Adversarial Training, ICLR 2023.

All draws are made on the host, which then knows how many images get each operation, so nothing waits for the device.
Works on 8-bit images and equals PIL to the last bit: shape operations use its 16.16 fixed point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timm_robust.data.augment import below, blank, on_device

ATTEMPTS = 10
"""Boxes that random erasing draws before it gives up, as in torchvision."""

DRAWS = 14 + 2 * ATTEMPTS
"""Uniform numbers per image."""


ONE = 2**16
"""A pixel in fixed point."""


@dataclass(frozen=True)
class Operation:
    """One colour or shape operation: its probability, and the range of its factor, or angle in radians or degrees."""

    name: str
    probability: float
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Variant:
    """Settings of one variant.

    Attributes:
        shift: exclusive upper bound of the rows, and of the columns, that CropShift removes, for 32-pixel images.
        operations: operations of which each image gets one; their probabilities sum to 1.
        erase: probability of random erasing.
        area: range of the erased share of an image.
    """

    shift: int
    operations: tuple[Operation, ...]
    erase: float
    area: tuple[float, float] = (0.02, 0.33)


COLOUR = (
    Operation("saturation", 0.125, 0.1, 1.9),
    Operation("brightness", 0.125, 0.5, 1.9),
    Operation("contrast", 0.125, 0.5, 1.9),
    Operation("sharpness", 0.125, 0.1, 1.9),
    Operation("autocontrast", 0.125),
    Operation("equalize", 0.125),
    Operation("shear", 0.125, 0.05, 0.15),
    Operation("rotation", 0.125, 1, 11),
)
SHAPE = (
    Operation("saturation", 0.08, 0.1, 1.9),
    Operation("brightness", 0.08, 0.5, 1.9),
    Operation("contrast", 0.04, 0.5, 1.9),
    Operation("sharpness", 0.08, 0.1, 1.9),
    Operation("autocontrast", 0.04),
    Operation("equalize", 0.08),
    Operation("shear", 0.3, 0.05, 0.35),
    Operation("rotation", 0.3, 1, 31),
)
WEAK = Variant(shift=11, operations=COLOUR, erase=0.5)
VARIANTS = {
    "idbh": WEAK,
    "idbh-weak": WEAK,
    "idbh-strong": Variant(shift=11, operations=COLOUR, erase=1.0),
    "idbh-svhn": Variant(shift=9, operations=SHAPE, erase=1.0, area=(0.02, 0.5)),
}


@dataclass(frozen=True)
class Plan:
    """Augmentation of each image of a batch, sorted by operation, so that each operation gets a slice.

    Attributes:
        order: int64 [B], positions in the batch.
        counts: number of images of each operation, in the variant's order.
        geometry: int32 [10, B]: from a pixel's (x, y) to the column and the row that it comes from, in fixed point (for
            each: what x adds, what y adds, the start), and the first and last row and column that are kept.
        erase: int32 [4, B], boxes for `blank`.
        factor: float32 [B], factors of the colour operations.
        flip: bool [B], in the order of the batch.
    """

    order: np.ndarray
    counts: list[int]
    geometry: np.ndarray
    erase: np.ndarray
    factor: np.ndarray
    flip: np.ndarray


def make_plan(variant: Variant, size: int, draws: np.ndarray) -> Plan:
    """Draws the augmentation of each image.

    Args:
        variant: settings.
        size: side in pixels.
        draws: float64 [DRAWS, B], uniform in [0, 1).
    """
    rows = iter(draws)
    flip = next(rows) < 0.5
    lost = below(next(rows), max(1, round(variant.shift * size / 32)))
    right = below(next(rows), lost + 1)
    cut = np.stack([lost - right, right])  # rows and columns that are lost
    source, target = (below(np.stack([next(rows), next(rows)]), cut + 1) for _ in range(2))

    shares = np.cumsum([operation.probability for operation in variant.operations])
    choice = np.searchsorted(shares[:-1], next(rows), side="right")
    low, high = (np.array([getattr(o, end) for o in variant.operations])[choice] for end in ("low", "high"))
    strength = low + (high - low) * next(rows)
    signed = np.where(next(rows) < 0.5, -strength, strength)
    names = np.array([operation.name for operation in variant.operations])[choice]
    matrix = _matrices(names, signed, sideways=next(rows) < 0.5)

    to_x, to_y = _fixed_point(matrix, size)
    shift = source - target
    to_y[2] += shift[0] * ONE
    to_x[2] += shift[1] * ONE
    first, last = source, source + size - 1 - cut
    # Mirroring comes first: column c of what is shifted is column size - 1 - c of the image.
    to_x = np.where(flip, np.array([0, 0, size * ONE - 1])[:, None] - to_x, to_x)
    first[1], last[1] = np.where(flip, size - 1 - last[1], first[1]), np.where(flip, size - 1 - first[1], last[1])

    erased = next(rows) < variant.erase
    boxes = _erasing_boxes(np.stack(list(rows)), variant.area, size) * erased
    order = np.argsort(choice, kind="stable")
    geometry = np.concatenate([to_x, to_y, first, last])[:, order]
    return Plan(
        order,
        np.bincount(choice, minlength=len(variant.operations)).tolist(),
        geometry.astype(np.int32),
        boxes.astype(np.int32)[:, order],
        strength.astype(np.float32)[order],
        flip,
    )


def _matrices(names: np.ndarray, strength: np.ndarray, sideways: np.ndarray) -> np.ndarray:
    """From a pixel's place in the new image to that in the old one, both seen from the centre.

    Returns:
        float64 [2, 2, B], for (x, y).
    """
    matrix = np.zeros((2, 2, len(names)))
    sheared, turned = names == "shear", names == "rotation"
    angle = np.radians(np.trunc(strength))  # whole degrees
    matrix[0, 0] = matrix[1, 1] = np.where(turned, np.cos(angle), 1.0)
    matrix[0, 1] = np.where(turned, -np.sin(angle), np.where(sheared & sideways, np.tan(strength), 0.0))
    matrix[1, 0] = np.where(turned, np.sin(angle), np.where(sheared & ~sideways, np.tan(strength), 0.0))
    return matrix


def _fixed_point(matrix: np.ndarray, size: int) -> np.ndarray:
    """PIL's numbers for these matrices, int64 [2, 3, B]: it starts in the middle of the first pixel."""
    start = size / 2 + (0.5 - size / 2) * matrix.sum(axis=1)
    return np.floor(np.concatenate([matrix, start[:, None]], axis=1) * ONE + 0.5).astype(np.int64)


def _erasing_boxes(draws: np.ndarray, area: tuple[float, float], size: int) -> np.ndarray:
    """The first box of each image that fits, of area `area` and aspect ratio 0.3 to 3.3; an empty one if none does.

    Args:
        draws: [2 ATTEMPTS + 2, B].

    Returns:
        float64 [4, B].
    """
    share, ratio, place = draws[:ATTEMPTS], draws[ATTEMPTS : 2 * ATTEMPTS], draws[2 * ATTEMPTS :]
    pixels = size**2 * (area[0] + (area[1] - area[0]) * share)
    ratio = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * ratio)
    sides = np.rint(np.sqrt(np.stack([pixels * ratio, pixels / ratio])))
    fits = (sides < size).all(axis=0)
    first = fits.argmax(axis=0)
    side = np.take_along_axis(sides, first[None, None], axis=1)[:, 0]
    corner = below(place, size - side + 1)
    return np.concatenate([corner, corner + side]) * fits.any(axis=0)


def apply(plan: Plan, variant: Variant, images: Tensor) -> Tensor:
    """The augmented images.

    Args:
        images: uint8 [B, C, size, size].

    Returns:
        uint8, of the same shape, contiguous.
    """
    device = images.device
    back = np.argsort(plan.order)
    numbers = np.concatenate([plan.geometry, plan.erase, plan.order[None], back[None]], dtype=np.int32)
    geometry, erase, (order, restore) = on_device(torch.from_numpy(numbers), device).split([10, 4, 2])
    factor = on_device(torch.from_numpy(plan.factor), device)
    out = _move(images.contiguous().index_select(0, order), geometry)
    start = 0
    for operation, count in zip(variant.operations, plan.counts, strict=True):
        part = slice(start, start + count)
        start += count
        if count and operation.name in COLOURS:
            out[part] = COLOURS[operation.name](out[part], factor[part])
    return blank(out, erase).index_select(0, restore)


def _move(images: Tensor, geometry: Tensor) -> Tensor:
    """Flip, CropShift and shape operation in one gather; pixels from outside are black."""
    size = images.shape[-1]
    xx, xy, x0, yx, yy, y0, top, left, bottom, right = geometry[:, :, None, None]
    x = torch.arange(size, dtype=torch.int32, device=images.device)
    y = x[:, None]
    cols = ((xx * x + x0) + xy * y) >> 16
    rows = ((yx * x + y0) + yy * y) >> 16
    col, row = cols.clamp(left, right), rows.clamp(top, bottom)
    inside = ((col == cols) & (row == rows)).to(torch.uint8)
    places = (row * size + col).long().view(len(images), 1, -1)
    pixels = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).view(images.shape)
    return pixels.mul_(inside[:, None])


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Interpolation from `other` (factor 0) to the images (1), and extrapolation; truncated, as in PIL."""
    other = other.float()
    return (other + factor[:, None, None, None] * (images.float() - other)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma as PIL's mode L, int32 [B, 1, H, W]."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images), images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma, rounded."""
    grey = _grey(images)
    count = grey[0].numel()
    mean = (2 * grey.sum((1, 2, 3), keepdim=True) + count) // (2 * count)
    return _blend(mean, images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13, which leaves the border as it is."""
    smooth = images.float()
    if min(images.shape[2:]) > 2:
        pixels = images.to(torch.int16)
        rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = (total / 13 + 0.5).floor_()
    return _blend(smooth, images, factor)


def autocontrast(images: Tensor, factor: Tensor) -> Tensor:
    """Each channel stretched to 0..255; in double precision, whose last bit decides a level now and then."""
    pixels = images.double()
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    scale = torch.full_like(high, 255) / (high - low)  # a number over a tensor would be its inverse times the number
    return torch.where(high > low, (pixels * scale + -low * scale).clamp_(0, 255), pixels).to(torch.uint8)


def equalize(images: Tensor, factor: Tensor) -> Tensor:
    """Histogram equalisation of each channel."""
    levels = images.flatten(2).long()
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return torch.where(step > 0, table.clamp_(max=255).gather(2, levels), levels).view(images.shape).to(torch.uint8)


COLOURS = {
    "saturation": saturation,
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "autocontrast": autocontrast,
    "equalize": equalize,
}
