"""The small-image stem: fit any timm model to images of at most 64 pixels without changing the shape of a weight.

ImageNet models divide the resolution by 32, which leaves one pixel of a 32-pixel image. Here the first downsamplings
are taken out until the last feature map is about 4x4 (transformers of one resolution: about 8x8 tokens). Nothing is
looked up by model name. A plan is made on a shadow of the model (meta device: shapes without arithmetic):

    candidates of create_model kwargs (img_size, patch_size, window_size) that the model accepts
      -> trace one forward: which convolution or pooling divides the resolution, at which level of the network
      -> stride 1 on the first levels, pure poolings removed, wide kernels cut to 3x3, until the target is met
      -> kept if a forward at the real size works

and then replayed on the real model, or later on a rebuilt one: `apply_stem` needs the record only.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from timm_robust.errors import UserError

Create = Callable[..., nn.Module]
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
_POOL_NAMES = ("BlurPool2d", "MedianPool2d")  # timm's, by name: the module paths moved between versions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What fits a model to an image size: kwargs for `timm.create_model`, then surgery for `apply_stem`."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    surgery: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Level:
    """Modules that divide the resolution at one depth of the network, parallel branches included."""

    stride_in: int
    factor: int
    modules: dict[str, int]  # name -> stride


def on_meta(create: Create, **kwargs: Any) -> nn.Module:
    """A model without storage, for shapes and operators at no cost.

    Older timm computes with real numbers while it builds (drop-path rates); such models are made, then emptied.
    """
    try:
        with torch.device("meta"):
            return create(**kwargs)
    except (NotImplementedError, RuntimeError):
        return create(**kwargs).to("meta")


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
    """The kwargs and the surgery that make a model take images of this size.

    Args:
        create: makes the bare model from extra kwargs, without pretrained weights.
        name: for messages.
        small: bring the resolution up (the small-image stem); otherwise only make the size fit.
        taken: kwargs that the user set and that must not be given again.

    Raises:
        UserError: no way was found.
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


class CentreConv2d(nn.Conv2d):
    """A convolution that uses the central 3x3 of a wider kernel; the weight keeps its shape, and timm's name.

    CIFAR networks have a 3x3 stem for a reason: behind a 7x7 one at full resolution, one-step adversarial training
    collapses where it otherwise holds (tests/test_collapse.py trains behind both).
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> CentreConv2d:
        """`conv` with zeros outside its centre, and the centre scaled to the variance of a fresh 3x3 kernel."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        new.weight, new.bias = conv.weight, conv.bias
        scale = math.sqrt(math.prod(conv.kernel_size)) / 3
        with torch.no_grad():
            centre = new.centre().clone()
            new.weight.zero_()
            new.centre().copy_(centre * scale)
        return new

    def centre(self) -> torch.Tensor:
        """The part of the weight that is used, [out, in, 3, 3]."""
        top, left = ((side - 3) // 2 for side in self.kernel_size)
        return self.weight[:, :, top : top + 3, left : left + 3]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(
            images, self.centre(), self.bias, self.stride, self.dilation, self.dilation, self.groups
        )


def apply_stem(model: nn.Module, surgery: dict[str, Any]) -> None:
    """Apply recorded surgery in place: strides, paddings, centres, and poolings that become the identity.

    Only fresh weights are cut to their centre: surgery for pretrained ones has no `centre`.
    """
    for name, stride in surgery.get("stride", {}).items():
        module: Any = model.get_submodule(name)
        module.stride = stride if isinstance(module.stride, int) else (stride, stride)
    if "same" in surgery.get("padding", {}).values():  # torch copies the input of even kernels, and says so
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
    for name, padding in surgery.get("padding", {}).items():
        convolution: Any = model.get_submodule(name)
        convolution.padding = padding if isinstance(padding, str) else tuple(padding)
    for name in surgery.get("centre", []):
        _replace(model, name, CentreConv2d.of(model.get_submodule(name)))  # type: ignore[arg-type]
    for name in surgery.get("remove", []):
        _replace(model, name, nn.Identity())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module


def trace_levels(model: nn.Module, size: int, in_chans: int) -> list[Level]:
    """The levels at which convolutions and poolings divide the resolution, first to last, in one forward at this size.

    Side paths that shrink further than the main path at the same depth (keys and values in attention) are left out.
    """
    seen: dict[str, tuple[int, int, int]] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if not (torch.is_tensor(output) and inputs and torch.is_tensor(inputs[0]) and inputs[0].ndim == 4):
                return
            before, after = inputs[0].shape[-2], output.shape[-2]
            if before > after > 0:
                stride_in = _power_of_two(size / before)
                seen.setdefault(name, (stride_in, max(_power_of_two(before / after), 2), _stride(module)))

        return record

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if _stride(m) > 1]
    try:
        _forward(model, size, in_chans)
    finally:
        for handle in handles:
            handle.remove()
    levels = []
    for stride_in in sorted({entry[0] for entry in seen.values()}):
        here = {name: entry for name, entry in seen.items() if entry[0] == stride_in}
        factor = min(entry[1] for entry in here.values())
        levels.append(Level(stride_in, factor, {name: e[2] for name, e in here.items() if e[1] == factor}))
    return levels


class _Shadow:
    """Trial copies of a model, on the meta device when it can run there, and what was learnt from them."""

    def __init__(self, create: Create, name: str, in_chans: int) -> None:
        self.create, self.in_chans = create, in_chans
        error: Exception | None = None
        for self.device in ("meta", "cpu"):
            try:
                base = self._create({})
                cfg = getattr(base, "pretrained_cfg", None) or getattr(base, "default_cfg", None) or {}
                self.default_size = int((cfg.get("input_size") or (3, 224, 224))[1])
                side, self.trust = _side(base, self.default_size, in_chans), True
                if self.default_size / side < 0.7 * _declared_stride(base):  # enlarged at the end, or channels first
                    side, self.trust = _side(base, self.default_size, in_chans, trust=False), False
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
        """A trial model, or None where it refuses these kwargs."""
        try:
            return self._create(kwargs)
        except Exception:  # TypeError for an unknown kwarg, anything for a value that does not fit
            return None

    def side(self, model: nn.Module | None, size: int) -> float | None:
        """Side of the last feature map in pixels or tokens, None where the model cannot take this size."""
        try:
            return _side(model, size, self.in_chans, self.trust) if model is not None else None
        except Exception:
            return None

    def goal(self, image_size: int) -> int:
        return patch_for_tokens(image_size) if self.isotropic else target_stride(image_size)

    def candidates(self, image_size: int, goal: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Kwargs to try in order, each with the image size at which a model made so is traced."""
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
        virtual = image_size * _power_of_two(self.total) // goal
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
        if model is None or _skips_pixels(model, self.base):
            return None
        side, traced, best = self.side(model, image_size), self.side(model, trace_size), None
        if side is not None:
            best = image_size / side, Plan(kwargs=kwargs)
        if traced is None or (best is not None and best[0] <= goal * 1.05):
            return best
        excess = _power_of_two(trace_size / traced / goal)
        levels = trace_levels(model, trace_size, self.in_chans)
        for first in range(len(levels)):  # where the first level resists (sizes no longer fit), start one later
            surgery = _surgery(model, levels[first:], excess)
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


def _surgery(model: nn.Module, levels: list[Level], excess: int) -> dict[str, Any]:
    """Strides, paddings and removals that take a factor `excess` out of the first levels."""
    strides: dict[str, int] = {}
    paddings: dict[str, Any] = {}
    remove: list[str] = []
    centre: list[str] = []
    for level in levels:
        if excess <= 1:
            break
        cut = min(level.factor, excess)
        excess //= cut
        for name, old in level.modules.items():
            module, new = model.get_submodule(name), max(1, old // cut)
            if new == 1 and _is_pool(module):
                remove.append(name)
                continue
            strides[name] = new
            if new == 1 and _is_wide(module):
                centre.append(name)
            padding = _padding(module, new)
            if padding is not None:
                paddings[name] = padding
    return {"stride": strides, "padding": paddings, "remove": remove, "centre": centre}


def _is_wide(module: nn.Module) -> bool:
    """Whether it is a plain convolution with an odd kernel wider than 3x3, which has a centre."""
    return type(module) is nn.Conv2d and all(k > 3 and k % 2 for k in module.kernel_size) and module.groups == 1


def _padding(module: Any, stride: int) -> list[int] | str | None:
    """Padding that keeps size / stride after the change; None where the present one does (or is computed per call)."""
    if _is_pool(module) or type(module).__name__.endswith("Same") or isinstance(module.padding, str):
        return None
    if not isinstance(module.padding, tuple) or getattr(module, "same_pad", False):
        return None
    total = [d * (k - 1) + 1 - stride for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if stride == 1 and any(t % 2 for t in total):
        return "same"  # even kernels (patchify stems) need one more pixel on one side
    wanted = [max(t // 2, 0) for t in total]
    return None if wanted == list(module.padding) else wanted


def _is_pool(module: nn.Module) -> bool:
    return isinstance(module, _POOLS) or type(module).__name__ in _POOL_NAMES


def _stride(module: nn.Module) -> int:
    """Stride of a convolution or pooling, 1 for everything else."""
    if not (_is_pool(module) or (hasattr(module, "kernel_size") and hasattr(module, "padding"))):
        return 1
    stride = getattr(module, "stride", 1)
    stride = stride[0] if isinstance(stride, (tuple, list)) else stride
    return stride if isinstance(stride, int) else 1


def _skips_pixels(model: nn.Module, base: nn.Module) -> bool:
    """Whether a kwarg shrank a kernel below its stride (a patch size that leaves the stride alone), losing pixels."""

    def skipping(network: nn.Module) -> set[str]:
        convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        return {name for name, m in convolutions if m.kernel_size[0] < _stride(m)}

    return bool(skipping(model) - skipping(base))


def _declared_stride(model: nn.Module) -> float:
    """Total stride as timm's feature information has it, 0 where it says nothing."""
    infos = getattr(model, "feature_info", None)
    return float(infos[-1].get("reduction", 0)) if isinstance(infos, list) and infos else 0.0


def _power_of_two(ratio: float) -> int:
    return int(2 ** max(round(math.log2(max(ratio, 1.0))), 0))


@torch.no_grad()
def _forward(model: Any, size: int, in_chans: int) -> Any:
    """One full forward; returns what `forward_features` gave inside it."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    features = model.forward_features
    kept: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        kept.append(features(*args, **kwargs))
        return kept[-1]

    model.forward_features = keep  # shadows the method of this instance only
    try:
        images = torch.zeros(1, in_chans, size, size, device=device)
        model(images)
    finally:
        del model.forward_features
    return kept[-1] if kept else features(images)


def _side(model: nn.Module, size: int, in_chans: int, trust: bool = True) -> float:
    """Square root of the number of positions of the last feature map; the full forward must work too.

    Args:
        trust: believe the shape that `forward_features` returns; otherwise take the smallest map of a convolution.
    """
    smallest = [size]

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_tensor(output) and output.ndim == 4 and inputs[0].shape[-1] > 1:  # not in squeezes
            smallest[0] = min(smallest[0], output.shape[-1])

    handles = [m.register_forward_hook(record) for m in model.modules() if hasattr(m, "kernel_size")]
    try:
        features = _forward(model, size, in_chans)
    finally:
        for handle in handles:
            handle.remove()
    if not trust:
        return float(smallest[0])
    if isinstance(features, dict):  # beside masks and coordinates
        features = max(features.values(), key=lambda part: part.numel() if torch.is_tensor(part) else 0)
    if isinstance(features, (tuple, list)):  # several scales, coarsest last
        features = [part for part in features if torch.is_tensor(part) and part.ndim >= 3][-1]
    shape, width = tuple(features.shape), getattr(model, "num_features", -1)
    if len(shape) == 4:
        channels_last = shape[-1] == width and shape[1] != width
        return math.sqrt(shape[1] * shape[2] if channels_last else shape[2] * shape[3])
    tokens = shape[1] - getattr(model, "num_prefix_tokens", 0) if len(shape) == 3 else 0
    return math.sqrt(tokens) if tokens > 1 else float(smallest[0])  # class tokens or a pooled vector
