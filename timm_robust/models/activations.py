"""Smooth activations: replaces every non-smooth activation of a built network of any family.

`act_layer=` cannot be relied on (many timm models refuse it, others keep ReLU in squeeze-excite, stems and gates), so
the swap walks the finished module tree, and `nonsmooth.trace_nonsmooth` verifies it on the operators that really ran.
Smooth functions and their derivatives: Xie et al., Smooth Adversarial Training, arXiv:2006.14536.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from timm_robust.errors import UserError, unknown


class SmoothReLU(nn.Module):
    """x - log(1 + alpha x) / alpha for x >= 0, else 0; alpha = raw_alpha ** 2 is learnt, one per activation site.

    Evaluated in float32 at least, because alpha x overflows in float16 from x = 164 at the initial alpha of 400.
    """

    def __init__(self, raw: float = 20.0) -> None:
        super().__init__()
        self.raw_alpha = nn.Parameter(torch.tensor(float(raw)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        alpha = self.raw_alpha.to(wide.dtype).square()
        positive = torch.where(wide > 0, wide, torch.zeros_like(wide))  # log1p needs its argument above -1
        return (positive - torch.log1p(alpha * positive) / alpha).to(x.dtype)


_smooth_backward = True


@contextmanager
def smooth_backward(enabled: bool) -> Iterator[None]:
    """Forward passes inside use the smooth backward of `relu-smooth-backward` (or ReLU's own, when not `enabled`).

    It is on by default. A trainer that wants it in the attack only, or in the update only, wraps the other phase.
    """
    global _smooth_backward
    before, _smooth_backward = _smooth_backward, enabled
    try:
        yield
    finally:
        _smooth_backward = before


class _ReLUSmoothGradient(torch.autograd.Function):
    """relu(x) forward, gradient times sigmoid(alpha x) backward: the derivative of parametric softplus."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, alpha: float) -> torch.Tensor:
        ctx.save_for_backward(x)  # the input, because the output no longer tells how negative it was
        ctx.alpha = alpha
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * torch.sigmoid(ctx.alpha * x), None


class SmoothBackwardReLU(nn.Module):
    """ReLU whose backward pass alone is smooth, while `smooth_backward` allows it."""

    def __init__(self, alpha: float = 10.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _ReLUSmoothGradient.apply(x, self.alpha) if _smooth_backward else F.relu(x)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class ScaledActivation(nn.Module):
    """An activation times the constant that keeps unit variance, as NFNet's GammaAct."""

    def __init__(self, act: nn.Module, gamma: float) -> None:
        super().__init__()
        self.act, self.gamma = act, gamma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) * self.gamma

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:.4f}"


@dataclass(frozen=True)
class Activation:
    """Activation that can be swapped in."""

    make: Callable[[float], nn.Module]
    help: str
    parameter: float | None = None
    """Default of the number that may follow the name after a colon; None if it takes none."""
    backward_only: bool = False


# threshold=50: torch's default of 20 makes softplus linear early enough to be seen in float64.
ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(lambda _: nn.SiLU(), "x sigmoid(x), also called Swish: the best choice of the paper"),
    "gelu": Activation(lambda _: nn.GELU(), "x times the normal distribution function"),
    "gelu_tanh": Activation(lambda _: nn.GELU(approximate="tanh"), "GELU by tanh, as in the paper's code"),
    "softplus": Activation(lambda _: nn.Softplus(threshold=50), "log(1 + e^x); shifts by 0.69, the one failure"),
    "psoftplus": Activation(
        lambda a: nn.Softplus(beta=a, threshold=50), "parametric softplus, log(1 + e^(a x)) / a; psoftplus:10", 10.0
    ),
    "elu": Activation(lambda _: nn.ELU(), "x, or e^x - 1 below 0"),
    "celu": Activation(lambda a: nn.CELU(alpha=a), "x, or a (e^(x/a) - 1) below 0; celu:1", 1.0),
    "mish": Activation(lambda _: nn.Mish(), "x tanh(softplus(x))"),
    "smoothrelu": Activation(lambda _: SmoothReLU(), "x - log(1 + a x) / a above 0, with a learnt from 400"),
    "relu-smooth-backward": Activation(
        lambda a: SmoothBackwardReLU(a), "ReLU forward, smooth backward only: the paper's ablation", 10.0, True
    ),
}


@dataclass(frozen=True, kw_only=True)
class SwapReport:
    """Outcome of a swap."""

    activation: str
    replaced: dict[str, int] = field(default_factory=dict)
    """Number of replacements, by `ReLU -> SiLU`."""
    left: dict[str, str] = field(default_factory=dict)
    """Reason, by path of a non-smooth module that stayed."""
    rescaled: int = 0
    """Number of convolutions of a normaliser-free network whose gain was adapted to the new activation."""


def canonical_name(name: str) -> str:
    """The name with its parameter written out: `psoftplus` -> `psoftplus:10`.

    Raises:
        UserError: unknown name or a parameter that is not a number above 0.
    """
    base, parameter = _parse(name)
    return base if parameter is None else f"{base}:{parameter:g}"


def swap_activations(model: nn.Module, name: str) -> SwapReport:
    """Replaces all non-smooth activations in place, by walking the module tree.

    Gates stay gates (Hardsigmoid -> Sigmoid) and what is smooth stays. Parameter-free activations change no key of the
    state dict. Swap before building the optimizer, and before EMA, DDP or compilation wrap the model.

    Args:
        model: network.
        name: name in `ACTIVATIONS`, optionally with its parameter (`psoftplus:10`).

    Raises:
        UserError: unknown name.
    """
    base, parameter = _parse(name)
    choice = ACTIVATIONS[base]
    swap = _Swap(model, choice, parameter if parameter is not None else 1.0)
    swap.walk(model, "")
    rescaled = 0 if choice.backward_only else swap.rescale_normaliser_free(model)
    report = SwapReport(
        activation=canonical_name(name), replaced=dict(swap.replaced), left=swap.left, rescaled=rescaled
    )
    if not report.replaced:
        reason = f"{len(report.left)} were left on purpose" if report.left else "its activations are already smooth"
        reason = "it has no plain ReLU" if choice.backward_only else reason
        warnings.warn(
            f"activation {report.activation!r} has no effect on {type(model).__name__}: nothing replaced, {reason}",
            stacklevel=2,
        )
    return report


def is_activation_parameter(module: nn.Module, name: str) -> bool:
    """Whether the parameter `name` of `module` shapes an activation, so that weight decay must skip it."""
    return isinstance(module, (SmoothReLU, nn.PReLU)) and name in ("raw_alpha", "weight")


def activation_parameters(model: nn.Module) -> set[int]:
    """`id` of each parameter that shapes an activation."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_activation_parameter(module, name)
    }


def _parse(name: str) -> tuple[str, float | None]:
    base, colon, text = name.partition(":")
    if base not in ACTIVATIONS:
        raise unknown("activation", base, ACTIVATIONS)
    default = ACTIVATIONS[base].parameter
    if not colon:
        return base, default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if default is None or not 0 < value < math.inf:
        wanted = f"{base} without a parameter" if default is None else f"a number above 0, such as {base}:{default:g}"
        raise UserError(f"activation {name!r}: expected {wanted}")
    return base, value


_MISH = {"HardMish", "HardMishMe"}
_SILU = {"Hardswish", "HardSwish", "HardSwishMe"}
_SIGMOID = {"Hardsigmoid", "HardSigmoid", "HardSigmoidMe"}
_HARD_FUNCTIONS = {"relu", "relu6", "leaky_relu", "hardswish", "hard_swish", "hard_mish", "hardtanh"}
_KEPT = {
    ("SquaredReLU", "relu"): "its square is already smooth",
    ("StarReLU", "relu"): "its square is already smooth",
    ("LiteMLA", "kernel_func"): "feature map of linear attention, which must not be negative",
}
_OUT_OF_REACH = {
    "FilterResponseNormTlu2d": "max(x, tau) is inside its forward: choose a model with another norm layer",
    "InplaceAbn": "its activation is fused into the kernel: choose a model with another norm layer",
}


class _Swap:
    """Walk over a module tree, with what it replaced and left."""

    def __init__(self, model: nn.Module, choice: Activation, parameter: float) -> None:
        self.choice, self.parameter = choice, parameter
        self.reference = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.replaced: Counter[str] = Counter()
        self.left: dict[str, str] = {}
        self.gains: set[float] = set()  # of the activations that went, for normaliser-free networks
        self.new: dict[int, nn.Module] = {}  # a module in two places stays one module
        self.old: list[nn.Module] = []  # keeps the replaced alive, so that ids stay unique
        self.seen: set[int] = set()

    def walk(self, parent: nn.Module, path: str) -> None:
        if id(parent) in self.seen:
            return
        self.seen.add(id(parent))
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            where = f"{path}.{name}" if path else name
            kind = type(child).__name__
            if kind in _OUT_OF_REACH and getattr(child, "act_name", None) != "identity":
                self.left[where] = _OUT_OF_REACH[kind]
            kept = _KEPT.get((type(parent).__name__, name))
            if kept:
                self.left[where] = kept
                continue
            new = self.new.get(id(child)) or self.make(child)
            if new is None:
                if self.choice.backward_only and _smooth_form(child, nn.Identity) is not None:
                    self.left[where] = f"{kind} is not a ReLU, and this variant keeps the forward pass"
                self.walk(child, where)
                continue
            if id(child) not in self.new:
                self.new[id(child)] = new
                self.old.append(child)
                self.replaced[f"{kind} -> {type(new).__name__}"] += 1
            parent._modules[name] = new

    def make(self, old: nn.Module) -> nn.Module | None:
        """Replacement of `old`, None if it stays."""
        if self.choice.backward_only:
            new = self._chosen() if type(old) is nn.ReLU else None
        elif type(old).__name__ == "GammaAct":
            hard = getattr(getattr(old, "act_fn", None), "__name__", "") in _HARD_FUNCTIONS
            act = self._chosen()
            new = ScaledActivation(act, _gain(act)) if hard else None
        else:
            new = _smooth_form(old, self._chosen)
            if new is not None and isinstance(old, (nn.ReLU, nn.ReLU6, nn.LeakyReLU)):
                self.gains.add(_gain(old))
        if new is not None:
            new.train(old.training)
            if self.reference is not None:
                new.to(device=self.reference.device, dtype=self.reference.dtype)
        return new

    def rescale_normaliser_free(self, model: nn.Module) -> int:
        """Adapts scaled convolutions, whose scale includes the old activation's gain, to the new one."""
        count = 0
        for module in model.modules():
            scale = getattr(module, "scale", None)
            if not type(module).__name__.startswith("ScaledStdConv2d") or not isinstance(scale, float):
                continue
            gamma = scale * math.sqrt(module.weight[0].numel())  # type: ignore[operator,index,union-attr]
            if any(math.isclose(gamma, gain, abs_tol=2e-3) for gain in self.gains):
                module.scale = scale * _gain(self._chosen()) / gamma  # type: ignore[assignment]
                count += 1
        return count

    def _chosen(self) -> nn.Module:
        return self.choice.make(self.parameter)


def _smooth_form(old: nn.Module, chosen: Callable[[], nn.Module]) -> nn.Module | None:
    """Smooth counterpart of a non-smooth activation; None for everything that stays."""
    kind = type(old).__name__
    if kind in _SIGMOID:
        return nn.Sigmoid()  # a gate: it must stay between 0 and 1
    if kind in _SILU:
        return nn.SiLU()
    if kind in _MISH:
        return nn.Mish()
    if isinstance(old, nn.ELU):
        return None if old.alpha == 1.0 else nn.CELU(alpha=old.alpha)  # ELU has a kink unless alpha is 1
    if isinstance(old, nn.Hardtanh) and not isinstance(old, nn.ReLU6):
        return nn.Tanh()
    if isinstance(old, (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.SELU)):
        return chosen()
    return None


@torch.no_grad()
def _gain(act: nn.Module) -> float:
    """1 / standard deviation of act(z) for normal z: NFNet's constant, for any activation."""
    z = torch.linspace(-12, 12, 24001, dtype=torch.float64, device="cpu")
    density = torch.exp(-z.square() / 2)
    density /= density.sum()
    value = copy.deepcopy(act).to(device="cpu", dtype=torch.float64).eval()(z.clone())
    mean = (density * value).sum()
    return float(((density * (value - mean).square()).sum()) ** -0.5)
