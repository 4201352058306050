"""The state of a network under attack: modes, BatchNorm and weight gradients, all of it restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from timm_robust.errors import unknown
from timm_robust.options import BN_POLICIES

_TRACK = "track_running_stats"


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Lets BatchNorm in train mode use the batch's statistics without recording them."""
    tracking = [module for module in model.modules() if module.training and getattr(module, _TRACK, False)]
    try:
        for module in tracking:
            setattr(module, _TRACK, False)  # F.batch_norm then neither reads nor writes the running statistics
        yield
    finally:
        for module in tracking:
            setattr(module, _TRACK, True)


@contextmanager
def attack_mode(model: nn.Module, bn: str = "eval") -> Iterator[None]:
    """Holds `model` in the state for crafting, and restores every mode and every `requires_grad` on the way out.

    Args:
        model: the network under attack.
        bn: `eval` puts the whole model in eval mode; `train` leaves the modes as they are, so that running statistics
            move in a training model; `frozen` uses batch statistics but records none.

    Raises:
        UserError: unknown policy.
    """
    if bn not in BN_POLICIES:
        raise unknown("BatchNorm policy", bn, BN_POLICIES)
    modes = [(module, module.training) for module in model.modules()]
    wanting_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting_grad:
            parameter.requires_grad_(False)
        if bn == "eval":
            for module, _ in modes:
                module.training = False
        with frozen_statistics(model) if bn == "frozen" else nullcontext():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in wanting_grad:
            parameter.requires_grad_(True)
