"""Random crops, flips and cutout, drawn from separate random streams: PyTorch's global one stays untouched."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timm_robust.data.batch import View
from timm_robust.utils.splitmix import child, right_shift

# Keys of the independent random streams of an epoch.
ORDER, TABLE, SAMPLE, FIXED = 0, 1, 2, 3
# Keys of draws per sample, and of the permutations of a mixture.
CORNERS, BATCHED, REAL, EXTRA = 4, 5, 6, 7


def stream(seed: int, epoch: int, *key: int) -> np.random.Generator:
    """Random stream of (seed, epoch, key); it depends on nothing else, so a resumed run draws the same."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed % 2**63, epoch, *key))))


def uniforms(seed: int, key: int, turn: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """`count` uniform numbers per sample, which depend on nothing but the sample's own arguments.

    They are the sample's own part of one SplitMix64 sequence, any part of which is computed without what precedes it:
    no table over the whole training set, and the same numbers in every batch, process or worker.

    Args:
        turn: int64 [B], below 2^25; number of times that the sample has come before, usually the epoch.
        index: int64 [B], below 2^32.
        count: at most 128.

    Returns:
        float64 [count, B] in [0, 1).
    """
    start = stream(seed, 0, key).integers(2**64, size=1, dtype=np.uint64).view(np.int64)
    place = ((turn.astype(np.int64) << 32) + index.astype(np.int64)) * 128
    return right_shift(child(start, place + np.arange(count)[:, None]), 11) * 2.0**-53


def below(draws: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Uniform numbers in [0, 1) as integers in 0..bound-1, int64."""
    return (draws * bound).astype(np.int64)


def scaled_pad(pad: int, size: int) -> int:
    """Padding in pixels at `size`, from the padding of 32-pixel images; at least 1 unless it is 0."""
    return max(1, round(pad * size / 32)) if pad > 0 else 0


def crop_table(n: int, pad: int, flip: bool, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops of all samples of an epoch: top and left, int64 [n] in 0..2*pad, and flips, bool [n]."""
    draws = stream(seed, epoch, TABLE).random((3, n), dtype=np.float32)
    corners = (draws[:2] * (2 * pad + 1)).astype(np.int64)
    return corners[0], corners[1], (draws[2] < 0.5) & flip


def pad_images(pixels: Tensor, pad: int, mode: str) -> Tensor:
    """Images with padding on each side.

    Args:
        pixels: uint8 [N, H, W, C].
        pad: width of the padding in pixels, smaller than the image if it reflects.
        mode: "zeros" or "reflect".

    Returns:
        uint8 [N, H + 2 pad, W + 2 pad, C].
    """
    if pad == 0:
        return pixels
    n, height, width, channels = pixels.shape
    if mode == "reflect":
        for axis, size in ((1, height), (2, width)):
            inside = np.pad(np.arange(size), pad, mode="reflect")
            pixels = pixels.index_select(axis, torch.from_numpy(inside).to(pixels.device))
        return pixels
    padded = pixels.new_zeros(n, height + 2 * pad, width + 2 * pad, channels)
    padded[:, pad : pad + height, pad : pad + width] = pixels
    return padded


def crop_and_flip(pixels: Tensor, index: Tensor, view: View, size: int) -> Tensor:
    """Crops of some images, all in one gather.

    Args:
        pixels: uint8 [N, F, F, C], padded, contiguous.
        index: int64 [B], positions of the images.
        view: crops and flips; their height and width are `size`.
        size: side in pixels.

    Returns:
        uint8 [B, C, size, size] in channels_last strides.
    """
    steps = torch.arange(size, device=pixels.device)
    n, frame, _, channels = pixels.shape
    rows = index[:, None] * frame + view.top[:, None] + steps
    cols = view.left[:, None] + torch.where(view.flip[:, None], size - 1 - steps, steps)
    # Numbering the pixels through is four times as fast on a CPU as one index per axis.
    places = rows[:, :, None] * frame + cols[:, None, :]
    crops = pixels.view(n * frame * frame, channels).index_select(0, places.view(-1))
    return crops.view(len(index), size, size, channels).permute(0, 3, 1, 2)


def blank(images: Tensor, boxes: Tensor) -> Tensor:
    """Sets a box of each image to zero, in place.

    Args:
        images: uint8 [B, C, H, W].
        boxes: integers [4, B]: first row and column, and those after the last; may reach over the border, or be empty.
    """
    top, left, bottom, right = boxes[:, :, None]
    rows, cols = (torch.arange(size, device=images.device) for size in images.shape[2:])
    high, wide = (rows >= top) & (rows < bottom), (cols >= left) & (cols < right)
    return images.mul_(~(high[:, :, None] & wide[:, None, :])[:, None])


def cutout_boxes(draws: np.ndarray, side: int, size: int) -> np.ndarray:
    """Squares of `side` pixels around pixels drawn uniformly; those near the border reach over it.

    Args:
        draws: [2, B], uniform in [0, 1).

    Returns:
        int64 [4, B], as `blank` takes them.
    """
    corner = below(draws, size) - side // 2
    return np.concatenate([corner, corner + side])


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy of a tensor on the device; asynchronous from pinned memory on a GPU."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def inception_box(
    width: int, height: int, random: np.random.Generator, *, smallest: float = 0.08, longest: float = 4 / 3
) -> tuple[int, int, int, int]:
    """Random part of an image: 8 to 100 % of its area, aspect ratio 3/4 to 4/3, as torchvision's RandomResizedCrop.

    Args:
        width, height: size of the image, in pixels.
        random: source of randomness.
        smallest: smallest share of the area.
        longest: largest aspect ratio, in either direction; 1 for squares.

    Returns:
        top, left, height, width in pixels.
    """
    for _ in range(10):
        area = width * height * random.uniform(smallest, 1.0)
        ratio = math.exp(random.uniform(math.log(1 / longest), math.log(longest)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.random() * (height - h + 1)), int(random.random() * (width - w + 1)), h, w
    # An image too long for such a part: the largest central one in the range of ratios.
    w, h = min(width, round(height * longest)), min(height, round(width * longest))
    return (height - h) // 2, (width - w) // 2, h, w


def apply_box(image: Image.Image, box: tuple[int, int, int, int], flip: bool, size: int) -> Image.Image:
    """The part `box` (top, left, height, width), scaled to `size` (bilinear, antialias), flipped if `flip`."""
    top, left, height, width = box
    part = image.crop((left, top, left + width, top + height))
    if part.size != (size, size):
        part = part.resize((size, size), Image.Resampling.BILINEAR)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part
