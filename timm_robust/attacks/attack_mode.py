"""Module modes, BatchNorm and weight gradients during an attack; all of it is restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from timm_robust.errors import unknown
from timm_robust.options import BN_POLICIES

_TRACK = "track_running_stats"


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Lets BatchNorm in train mode use batch statistics without updating the running ones."""
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
    """Puts `model` in the state for an attack, and restores every mode and every `requires_grad` on exit.

    Args:
        model: network under attack.
        bn: BatchNorm policy. `eval` puts the whole model in eval mode; `train` leaves the modes alone, so that the
            running statistics of a training model are updated; `frozen` uses batch statistics but updates none.

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
