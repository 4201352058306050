"""Conversion of arrays and tensors of any usual layout to uint8 NHWC pixels and int64 labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from timm_robust.errors import UserError


def to_pixels(values: Any, what: str) -> np.ndarray:
    """Images as uint8 RGB.

    Args:
        values: uint8 (or other integers) in 0..255, or floats in [0, 1]; [N, H, W], [N, H, W, 1 or 3] or
            [N, 1 or 3, H, W], as a NumPy array or a tensor. Floats are rounded to the nearest of 256 levels.
        what: name of the images, for messages.

    Returns:
        uint8 [N, H, W, 3]; grey images repeat their channel.

    Raises:
        UserError: another layout or type, or values out of range.
    """
    first = isinstance(values, torch.Tensor)
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    array = _as_bytes(_channels_last(array, what, prefer_first=first), what)
    if array.shape[-1] == 1:
        array = array.repeat(3, axis=-1)
    return np.ascontiguousarray(array)


def _channels_last(array: np.ndarray, what: str, *, prefer_first: bool) -> np.ndarray:
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4:
        # A tensor is channels first by custom, an array channels last; the other layout is taken where it alone fits.
        for axis in (1, 3) if prefer_first else (3, 1):
            if array.shape[axis] in (1, 3):
                return np.moveaxis(array, axis, -1)
    shape = list(array.shape)
    raise UserError(f"{what} have shape {shape}: expected [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W]")


def _as_bytes(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype == np.uint8 or array.size == 0:
        return array.astype(np.uint8, copy=False)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{what} have type {array.dtype}: expected uint8 in 0..255 or floats in [0, 1]")
    low, high = float(array.min()), float(array.max())
    found = f"{what} range from {low:.4g} to {high:.4g}"
    if array.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise UserError(f"{found}: expected integers in 0..255")
        return array.astype(np.uint8)
    if not (low >= 0 and high <= 1):  # also catches NaN
        if low >= 0 and 10 < high <= 255:
            cause = "they look like 0..255: divide by 255, or give them as uint8"
        else:
            cause = "they look normalised: leave that out, the model normalises by itself"
        raise UserError(f"{found}: expected floats in [0, 1]; {cause}")
    return np.rint(array * 255).astype(np.uint8)


def to_labels(values: Any, what: str) -> np.ndarray:
    """Class numbers as int64 [N], from integers [N] or [N, 1].

    Raises:
        UserError: not integers, negative, or another shape.
    """
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{what} have shape {list(array.shape)}: expected one class number per image, [N] or [N, 1]")
    if array.size and array.dtype.kind not in "iu":
        raise UserError(f"{what} have type {array.dtype}: expected integers, class numbers from 0")
    if array.size and array.min() < 0:
        raise UserError(f"{what} contain {array.min()}: expected class numbers from 0")
    return array.astype(np.int64)
