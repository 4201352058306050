"""Preconditions of an evaluation: what a model and its images must be for an accuracy to mean something."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.errors import UserError
from timm_robust.utils.random import preserve_rng_state

SAME_WITHIN = 1e-4
"""Largest difference between the normalised logits of two forward passes; AutoAttack's own bound."""


def device_of(model: nn.Module, images: Tensor) -> torch.device:
    """Device of the model's parameters; of the images where it has none."""
    parameter = next(model.parameters(), None)
    return images.device if parameter is None else parameter.device


def require_eval(model: nn.Module) -> None:
    """Refuses a model in train mode, or with a part in it: dropout and batch statistics would make every number
    meaningless."""
    for name, module in model.named_modules():
        if module.training:
            what = f"part {name!r} of the model" if name else "the model"
            raise UserError(f"{what} is in train mode: call model.eval() before evaluating it")


def require_pixels(images: Tensor) -> None:
    """Refuses an empty set of images, and pixels outside [0, 1].

    Raises:
        UserError: either of them.
    """
    if len(images) == 0:
        raise UserError("there are no images to evaluate on")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"images range from {low:g} to {high:g}: expected pixels in [0, 1], normalisation is in the model"
        )


@torch.no_grad()
def require_deterministic(model: nn.Module, images: Tensor) -> None:
    """Refuses a model that gives one image two answers: an attack would only be lucky, or unlucky.

    Args:
        model: in eval mode.
        images: float [N, C, H, W]; two forward passes of the first eight are compared.

    Raises:
        UserError: logits, scaled to length 1, that differ by more than 1e-4, as in AutoAttack's check.
    """
    sample = images[:8].to(device_of(model, images))
    with attack_mode(model), preserve_rng_state():
        one, two = (nn.functional.normalize(model(sample).float(), dim=1) for _ in range(2))
    apart = (one - two).abs().max().item()
    if apart > SAME_WITHIN:
        raise UserError(
            f"the model is not deterministic: two forward passes of the same images differ by {apart:.2g} in logits of "
            "length 1, expected the same; use autoattack-rand, and say that random outputs are meant"
        )


@torch.no_grad()
def require_finite(model: nn.Module, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """Refuses a model whose logits are NaN or infinite for one of the images, or whose weights take no such images.

    Args:
        model: in eval mode.
        images: float [N, C, H, W] in [0, 1].
        batch_size: images per forward pass.

    Returns:
        the logits of the first batch, from which more can be checked without another forward pass.

    Raises:
        UserError: names the first such image, or the type of the weights.
    """
    device = device_of(model, images)
    first = _first_logits(model, images[:batch_size].to(device))
    for start in range(0, len(images), batch_size):
        logits = model(images[start : start + batch_size].to(device)) if start else first
        lost = (~logits.isfinite()).any(dim=1).nonzero().squeeze(1)
        if len(lost):
            value = logits[lost[0]][~logits[lost[0]].isfinite()][0].item()
            raise UserError(
                f"the model's logits are {value:g} for image {start + int(lost[0])}: expected finite numbers; its "
                "weights may be damaged"
            )
    return first


def _first_logits(model: nn.Module, images: Tensor) -> Tensor:
    """A forward pass whose failure is explained."""
    try:
        return model(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        parameter = next(model.parameters(), images)
        if parameter.dtype != images.dtype:
            held, given = (str(dtype).removeprefix("torch.") for dtype in (parameter.dtype, images.dtype))
            raise UserError(
                f"the model's weights are {held} and it takes no {given} images: call model.float(), or let its "
                "forward convert them"
            ) from error
        shape = "x".join(map(str, images.shape[1:]))
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the model cannot take images of {shape}: {reason}") from error


def output_warnings(logits: Tensor) -> tuple[str, ...]:
    """Warnings about the outputs for some images [N, K]: probabilities, whose gradients vanish, in place of logits."""
    outputs = logits[:32].float()
    shares = ((outputs >= 0) & (outputs <= 1)).all() and ((outputs.sum(dim=1) - 1).abs() < 1e-5).all()
    return ("the outputs look like probabilities: return logits instead of a softmax",) if bool(shares) else ()
