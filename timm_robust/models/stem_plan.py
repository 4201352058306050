"""Search for the small-image stem: the kwargs and the surgery that fit any timm model to images of up to 64 pixels.

ImageNet models divide the resolution by 32, which leaves one position of a 32-pixel image. Here the first downsamplings
are taken out until the last feature map is about 4x4 (transformers of one resolution: about 8x8 tokens). Nothing is
looked up by model name. A plan is made on trial copies of the model (meta device: shapes without arithmetic):

    candidates of create_model kwargs (img_size, patch_size, window_size) that the model accepts
      -> trace one forward: which convolution or pooling divides the resolution, at which level of the network
      -> stride 1 on the first levels, pure poolings removed, wide kernels cut to 3x3, until the target is met
      -> kept if a forward at the real size works

and then applied to the real model by `stem.apply_stem`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from timm_robust.errors import UserError
from timm_robust.models.resolution import (
    declared_stride,
    last_side,
    on_meta,
    power_of_two,
    skips_pixels,
    trace_levels,
)
from timm_robust.models.stem import apply_stem, remove_strides

Create = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Changes that fit a model to an image size: kwargs for `timm.create_model`, then surgery for `apply_stem`."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    surgery: dict[str, Any] = field(default_factory=dict)


def target_stride(image_size: int) -> int:
    """Total stride for small images: the largest power of two that leaves a last map of 4x4, counting a rest as one.

    64 -> 16, 32 -> 8, 28 -> 8 (3.5 is 4 after padding). Not below 8, as in the CIFAR networks of the papers: smaller
    images end on a smaller map (16 -> 2x2, 8 -> 1x1), because whole networks at full resolution cost too much.
    """
    fitting = max(2**k for k in range(8) if k == 0 or math.ceil(image_size / 2**k) >= 4)
    return max(fitting, min(8, 2 ** int(math.log2(image_size))))


def patch_for_tokens(image_size: int) -> int:
    """Patch size for transformers of one resolution: at most 8x8 tokens of at least 2x2 pixels."""
    divisors = [p for p in range(2, image_size + 1) if image_size % p == 0 and image_size // p <= 8]
    return min(divisors, default=image_size)


def make_plan(
    create: Create, name: str, *, image_size: int, in_chans: int, small: bool, taken: Collection[str]
) -> Plan:
    """Finds the kwargs and the surgery that make a model take images of this size.

    Args:
        create: function that creates the plain model from extra kwargs, without pretrained weights.
        name: name of the model, for messages.
        image_size: side in pixels.
        in_chans: number of image channels.
        small: raise the resolution of the feature maps (the small-image stem); otherwise only make the size fit.
        taken: kwargs that are already set and must not be given again.

    Raises:
        UserError: the model cannot be fitted.
    """
    shadow = _Shadow(create, name, in_chans)
    if not small:
        for kwargs in ({}, {"img_size": image_size}):
            if not taken & kwargs.keys() and shadow.side(shadow.make(kwargs), image_size) is not None:
                return Plan(kwargs=dict(kwargs))
        raise UserError(
            f"model {name!r} does not take images of {image_size} pixels: expected its own {shadow.default_size} "
            f"(--image-size {shadow.default_size}), or a model without a fixed input size"
        )
    goal = shadow.goal(image_size)
    # Finer goals are for models whose blocks need larger maps, such as halo attention in blocks of 8x8.
    best = None
    for finer in (goal, goal // 2, goal // 4):
        if best is None and finer >= 1:
            best = shadow.search(image_size, finer, taken)
    if best is None:
        larger = (s for s in (32, 64) if s > image_size and shadow.search(s, shadow.goal(s), taken))
        raise UserError(
            f"model {name!r} cannot be fitted to {image_size}-pixel images (its stride {shadow.total:.0f} resists "
            f"surgery): take --image-size {next(larger, shadow.default_size)}, or another model"
        )
    stride, plan = best
    if stride > goal * 2.1 or (stride > goal and image_size / stride < 1.5):
        side = max(round(image_size / stride), 1)
        warnings.warn(
            f"model {name!r} still divides the resolution by {stride:.0f}, which leaves {side}x{side} positions of a "
            f"{image_size}-pixel image: take a larger --image-size, or another model",
            stacklevel=2,
        )
    return plan


class _Shadow:
    """Trial copies of a model, on the meta device if it runs there, and what they showed."""

    def __init__(self, create: Create, name: str, in_chans: int) -> None:
        self.create, self.in_chans = create, in_chans
        error: Exception | None = None
        for self.device in ("meta", "cpu"):
            try:
                base = self._create({})
                cfg = getattr(base, "pretrained_cfg", None) or getattr(base, "default_cfg", None) or {}
                self.default_size = int((cfg.get("input_size") or (3, 224, 224))[1])
                side, self.trust = last_side(base, self.default_size, in_chans), True
                if self.default_size / side < 0.7 * declared_stride(base):  # enlarged at the end, or channels first
                    side, self.trust = last_side(base, self.default_size, in_chans, trust=False), False
                self.total = self.default_size / side
                levels = trace_levels(base, self.default_size, in_chans)
                self.base = base
                break
            except Exception as caught:  # whatever a model does on the meta device, the processor decides
                error = caught
        else:
            raise UserError(f"model {name!r} cannot run at its own image size ({type(error).__name__}: {error})")
        patch = getattr(getattr(base, "patch_embed", None), "patch_size", None)
        patch = patch[0] if isinstance(patch, (tuple, list)) else patch
        if not isinstance(patch, int):
            patch = max(levels[0].modules.values()) if levels else round(self.total)
        self.patch = patch
        self.isotropic = self.patch > 2 and abs(self.total / self.patch - 1) < 0.05

    def _create(self, kwargs: dict[str, Any]) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (on_meta(self.create, **kwargs) if self.device == "meta" else self.create(**kwargs)).eval()

    def make(self, kwargs: dict[str, Any]) -> nn.Module | None:
        """Trial model, or None if it refuses these kwargs."""
        try:
            return self._create(kwargs)
        except Exception:  # TypeError for an unknown kwarg, anything for a value that does not fit
            return None

    def side(self, model: nn.Module | None, size: int) -> float | None:
        """Side of the last feature map in pixels or tokens, None if the model cannot take this size."""
        try:
            return last_side(model, size, self.in_chans, self.trust) if model is not None else None
        except Exception:
            return None

    def goal(self, image_size: int) -> int:
        return patch_for_tokens(image_size) if self.isotropic else target_stride(image_size)

    def candidates(self, image_size: int, goal: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Kwargs to try in order, each with the image size at which the resulting model is traced."""
        if self.total <= goal * 1.05:
            yield {}, self.default_size
            yield {"img_size": image_size}, image_size
        patch = goal if self.isotropic else max(1, round(self.patch * goal / self.total))
        window = math.ceil(image_size / target_stride(image_size))
        if patch < self.patch:
            yield {"img_size": image_size, "patch_size": patch, "window_size": window}, image_size
            yield {"img_size": image_size, "patch_size": patch}, image_size
            yield {"patch_size": patch}, self.default_size
        # Made for the size at which the inner maps are those of the unstrided model at `image_size`.
        virtual = image_size * power_of_two(self.total) // goal
        yield {"img_size": virtual}, virtual
        yield {}, self.default_size
        yield {"img_size": image_size}, image_size

    def search(self, image_size: int, goal: int, taken: Collection[str]) -> tuple[float, Plan] | None:
        """The plan with the lowest total stride, or the first that reaches the goal."""
        best: tuple[float, Plan] | None = None
        for kwargs, trace_size in self.candidates(image_size, goal):
            found = None if taken & kwargs.keys() else self.unstride(kwargs, trace_size, image_size, goal)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
            if best is not None and best[0] <= goal * 1.05:
                break
        return best

    def unstride(
        self, kwargs: dict[str, Any], trace_size: int, image_size: int, goal: int
    ) -> tuple[float, Plan] | None:
        """The plan that brings a model made with `kwargs` nearest to the goal, with its total stride."""
        model = self.make(kwargs)
        if model is None or skips_pixels(model, self.base):
            return None
        side, traced, best = self.side(model, image_size), self.side(model, trace_size), None
        if side is not None:
            best = image_size / side, Plan(kwargs=kwargs)
        if traced is None or (best is not None and best[0] <= goal * 1.05):
            return best
        excess = power_of_two(trace_size / traced / goal)
        levels = trace_levels(model, trace_size, self.in_chans)
        for first in range(len(levels)):  # where the first level resists (sizes no longer fit), start one later
            surgery = remove_strides(model, levels[first:], excess)
            trial = copy.deepcopy(model)
            apply_stem(trial, surgery)
            side = self.side(trial, image_size)
            if side is None:
                continue
            stride = image_size / side
            if best is None or stride < best[0]:
                best = stride, Plan(kwargs=kwargs, surgery={**surgery, "total_stride": round(stride)})
            if stride <= goal * 1.05:
                break
        return best
