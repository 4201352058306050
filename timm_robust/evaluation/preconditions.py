"""Preconditions of an evaluation: what a model must be for its accuracy to mean something."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.errors import UserError
from timm_robust.utils.random import preserve_rng_state

SAME_WITHIN = 1e-4
"""How far the normalised logits of one image may move between two forward passes; AutoAttack's own bound."""


def require_eval(model: nn.Module) -> None:
    """Refuses a model in train mode, or with a part in it: dropout and batch statistics would make every number
    meaningless."""
    for name, module in model.named_modules():
        if module.training:
            what = f"part {name!r} of the model" if name else "the model"
            raise UserError(f"{what} is in train mode: call model.eval() before evaluating it")


@torch.no_grad()
def require_deterministic(model: nn.Module, images: Tensor) -> None:
    """Refuses a model that gives one image two answers: an attack would only be lucky, or unlucky.

    Args:
        model: in eval mode.
        images: float [N, C, H, W]; the first eight are looked at, twice.

    Raises:
        UserError: logits, scaled to length 1, that differ by more than 1e-4, as in AutoAttack's check.
    """
    device = next(model.parameters()).device
    sample = images[:8].to(device)
    with attack_mode(model), preserve_rng_state():
        one, two = (nn.functional.normalize(model(sample).float(), dim=1) for _ in range(2))
    apart = (one - two).abs().max().item()
    if apart > SAME_WITHIN:
        raise UserError(
            f"the model is not deterministic: two forward passes of the same images differ by {apart:.2g} in logits of "
            "length 1, expected the same; use autoattack-rand, and say that random outputs are meant"
        )


@torch.no_grad()
def require_finite(model: nn.Module, images: Tensor, *, batch_size: int = 250) -> None:
    """Refuses a model whose logits are NaN or infinite for one of the images.

    Args:
        model: in eval mode.
        images: float [N, C, H, W] in [0, 1].

    Raises:
        UserError: names the first such image.
    """
    device = next(model.parameters()).device
    for start in range(0, len(images), batch_size):
        logits = model(images[start : start + batch_size].to(device))
        lost = (~logits.isfinite()).any(dim=1).nonzero().squeeze(1)
        if len(lost):
            value = logits[lost[0]][~logits[lost[0]].isfinite()][0].item()
            raise UserError(
                f"the model's logits are {value:g} for image {start + int(lost[0])}: expected finite numbers; its "
                "weights may be damaged"
            )


@torch.no_grad()
def output_warnings(model: nn.Module, images: Tensor) -> list[str]:
    """What to warn of in the outputs for some images: probabilities, whose gradients vanish, in place of logits."""
    outputs = model(images[:32].to(next(model.parameters()).device)).float()
    shares = ((outputs >= 0) & (outputs <= 1)).all() and ((outputs.sum(dim=1) - 1).abs() < 1e-5).all()
    return ["the outputs look like probabilities: return logits instead of a softmax"] if bool(shares) else []
