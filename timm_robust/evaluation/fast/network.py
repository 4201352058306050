"""Crafting copy of a model: same function, less work.

BatchNorm in eval mode is a scale and a shift of each channel, so it folds into the convolution before it; the copy runs
in channels_last if possible, its weights need no gradient, and it can run in bf16 or compiled. It decides no verdict:
the original model confirms each adversarial image.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.errors import UserError, unknown
from timm_robust.evaluation.fast.verdict import full_float32
from timm_robust.evaluation.settings import PRECISIONS

TOLERANCE = 1e-4
"""Largest difference between the logits of copy and original, relative to the largest logit."""
LAYOUTS = (torch.channels_last, torch.contiguous_format)
"""Memory formats to try in turn: a model that takes views of its feature maps fails in the first."""


class Network:
    """Images to logits for crafting.

    Args:
        model: in eval mode; it is copied, never changed.
        sample: a few images [n, C, H, W] in [0, 1], on which the copy is compared with the original.
        precision: `fp32`, or `bf16` for convolutions and matrix products.
        compile: compile full batches; smaller ones run uncompiled.
        full: size of a full batch.

    Raises:
        UserError: unknown precision, or a model that cannot be copied, or whose copy computes something else.

    Attributes:
        device: device of the model.
        folded: number of folded BatchNorm layers.
        memory_format: memory format of images and weights.
        frozen: the copy as a graph for passes without gradients, on a CPU in fp32 if that works.
    """

    def __init__(
        self, model: nn.Module, sample: Tensor, *, precision: str = "fp32", compile: bool = False, full: int = 0
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        parameter = next(model.parameters(), None)
        self.device = sample.device if parameter is None else parameter.device
        # of the images: half a precision would lose an attack's small steps, whatever the weights have
        self.dtype = torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32
        self.precision, self.full = precision, full
        sample = sample.to(self.device, self.dtype)
        self.module, self.folded, self.memory_format = _fastest(model, sample)
        self.compiled: Any = torch.compile(self.module, dynamic=False) if compile and full else None
        self.frozen = _frozen(self.module, sample) if self.device.type == "cpu" and precision == "fp32" else None

    def layout(self, images: Tensor) -> Tensor:
        """Images on the network's device, in its type and memory format."""
        return images.to(self.device, self.dtype).contiguous(memory_format=self.memory_format)

    def __call__(self, images: Tensor, *, compiled: bool = True) -> Tensor:
        """Logits [B, K], in the precision of the images; with a graph where gradients are on.

        Args:
            compiled: run the compiled copy, if there is one.
        """
        images = images.contiguous(memory_format=self.memory_format)
        run = self.compiled if compiled and self.compiled is not None and len(images) == self.full else self.module
        half = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            logits = run(images)
        return logits.to(images.dtype)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, K] without a graph."""
        if self.frozen is None:
            return self(images)
        return self.frozen(images.contiguous(memory_format=self.memory_format)).to(images.dtype)


@torch.no_grad()
def _fastest(model: nn.Module, sample: Tensor) -> tuple[nn.Module, int, torch.memory_format]:
    """The copy, folded and laid out as far as the logits stay the same."""
    with full_float32():
        wanted = model(sample)
        if not wanted.isfinite().all():
            raise UserError("the model's logits are not finite on the first images: it cannot be attacked")
        allowed = TOLERANCE * wanted.abs().max().clamp(min=1e-6)
        for layout in LAYOUTS:
            images = sample.contiguous(memory_format=layout)
            for convolutions in ("all", "plain", "none"):  # one that does more than to convolve may not fold
                candidate = _copy(model)
                try:
                    count = _fold(candidate, sample, plain=convolutions == "plain") if convolutions != "none" else 0
                    candidate = candidate.to(memory_format=layout)
                    apart = (candidate(images) - wanted).abs().max()
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:
                    continue
                if apart <= allowed:
                    return candidate, count, layout
    raise UserError(
        f"the fast mode needs a copy of the model, and that of {type(model).__name__} gives other logits: use the "
        "reference mode"
    )


@torch.no_grad()
def _frozen(module: nn.Module, sample: Tensor) -> Any:
    """The module as a frozen graph, in which a CPU fuses convolutions and activations; None if that fails."""
    if sample.dtype != torch.float32 or len(sample) < 2:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated; its successor needs a compiler and minutes
            graph = torch.jit.trace(module, sample, check_trace=False)
            graph = torch.jit.optimize_for_inference(torch.jit.freeze(graph))
            for images in (sample, sample[:1], sample):  # a graph may have taken the batch for a constant
                wanted = module(images)
                if (graph(images) - wanted).abs().max() > TOLERANCE * wanted.abs().max().clamp(min=1e-6):
                    return None
    except Exception:
        return None
    return graph


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:
        raise UserError(
            f"the fast mode needs a copy of the model, which {type(model).__name__} does not allow "
            f"({type(error).__name__}): use the reference mode"
        ) from error


def _fold(model: nn.Module, sample: Tensor, *, plain: bool) -> int:
    """Folds BatchNorm layers that get the very output of a convolution, both run once; returns how many.

    Args:
        plain: only into torch's own `Conv2d`, and not into classes derived from it.
    """
    calls: dict[nn.Module, int] = {}
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    pairs: list[tuple[nn.Conv2d, Any]] = []

    def after_conv(module: Any, inputs: Any, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        outputs.append((module, output))  # kept, so that no other tensor can be mistaken for it

    def before_norm(module: Any, inputs: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        pairs.extend((conv, module) for conv, output in outputs if output is inputs[0])

    convs = [m for m in model.modules() if (type(m) is nn.Conv2d if plain else isinstance(m, nn.Conv2d))]
    convs = [conv for conv in convs if not conv._forward_pre_hooks and not conv._forward_hooks]
    norms = [m for m in model.modules() if _is_norm(m)]
    hooks = [conv.register_forward_hook(after_conv) for conv in convs]
    hooks += [norm.register_forward_pre_hook(before_norm) for norm in norms]
    try:
        model(sample[:1])
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(conv, norm) for conv, norm in pairs if calls[conv] == 1 and calls[norm] == 1]
    places = {child: (parent, name) for parent in model.modules() for name, child in parent.named_children()}
    for conv, norm in pairs:
        _fold_into(conv, norm)
        parent, name = places[norm]
        # timm has a BatchNorm with the activation inside
        setattr(parent, name, nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity())
    return len(pairs)


def _is_norm(module: nn.Module) -> bool:
    if not isinstance(module, nn.BatchNorm2d) or module.running_var is None:
        return False
    return type(module) is nn.BatchNorm2d or (hasattr(module, "act") and hasattr(module, "drop"))


def _fold_into(conv: nn.Conv2d, norm: Any) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
