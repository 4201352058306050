"""Optimizers and learning-rate schedules from timm and torch, as the recipe says."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import timm.optim
import timm.scheduler
import torch
from torch import nn

from timm_robust.errors import UserError, unknown
from timm_robust.models.activations import activation_parameters
from timm_robust.recipes.recipe import Recipe, share, share_pairs

COMMON_OPTIMIZERS = ("momentum", "sgd", "adam", "adamw", "nadam", "rmsprop", "lamb", "lion", "adan")


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Any timm optimizer; weight decay skips parameters of activations, and biases and norms if the recipe says so.

    Raises:
        UserError: unknown optimizer.
    """
    never = activation_parameters(model)
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        plain = id(parameter) not in never and (recipe.decay_norm_bias or parameter.ndim > 1)
        if parameter.requires_grad:
            (decayed if plain else kept).append(parameter)
    groups = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}] if kept else [{"params": decayed}]
    try:
        return timm.optim.create_optimizer_v2(
            groups, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
        )
    except (AssertionError, ValueError):  # which one depends on timm's version, and before 1.0.12 it lists no names
        names = getattr(timm.optim, "list_optimizers", lambda: COMMON_OPTIMIZERS)()
        if recipe.optimizer in names:
            raise
        raise unknown("optimizer", recipe.optimizer, names, hint="names are timm's") from None


def scaled(recipe: Recipe, processes: int) -> Recipe:
    """The recipe with its learning rate scaled linearly to the images of an optimizer step, if it has a `lr_base_size`.

    Goyal et al., arXiv:1706.02677: `lr_base_size` is the batch size that `lr` refers to.
    """
    if not recipe.lr_base_size:
        return recipe
    images = recipe.batch_size * recipe.accumulate * processes
    return replace(recipe, lr=recipe.lr * images / recipe.lr_base_size)


class Schedule:
    """Learning-rate schedule, stepped after each optimizer step; one interface to torch's and timm's schedulers.

    Args:
        optimizer: optimizer whose rates are set.
        recipe: schedule and its settings.
        steps_per_epoch: optimizer steps (not batches) per epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> None:
        self.steps = 0
        total = recipe.epochs * steps_per_epoch
        self._torch: Any = None
        self._timm: Any = None
        if recipe.schedule == "onecycle":
            self._torch = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                recipe.lr,
                total_steps=max(total, 2),
                pct_start=recipe.peak,
                cycle_momentum=recipe.cycle_momentum,
            )
        elif recipe.schedule == "cyclic":
            up = max(1, round(recipe.peak * total))
            self._torch = torch.optim.lr_scheduler.CyclicLR(
                optimizer, 0.0, recipe.lr, step_size_up=up, step_size_down=max(1, total - up), cycle_momentum=False
            )
        elif recipe.schedule == "piecewise":
            shares, factors = points(recipe)
            last = max(total - 1, 1)
            self._torch = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: float(np.interp(min(step / last, 1.0), shares, factors))
            )
        elif recipe.schedule == "constant":
            self._torch = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        else:
            self._timm = self._from_timm(optimizer, recipe, steps_per_epoch)
            self._timm.step_update(0)

    @staticmethod
    def _from_timm(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> Any:
        marks = [recipe.epochs * mark for mark in milestones(recipe)]
        warmup = min(recipe.warmup_epochs, recipe.epochs - 1)
        prefix = recipe.schedule == "cosine"  # the cosine starts after the warm-up, falls keep their epochs
        length = recipe.epochs * (recipe.cosine_span if prefix else 1)
        scheduler, _ = timm.scheduler.create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=length - warmup if prefix else length,
            decay_epochs=marks[0],
            decay_milestones=marks,
            decay_rate=recipe.lr_decay,
            warmup_epochs=warmup,
            warmup_lr=0.0,
            warmup_prefix=prefix,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
        return scheduler

    def step(self) -> None:
        """Sets the rate of the next optimizer step."""
        self.steps += 1
        if self._torch is None:
            self._timm.step_update(self.steps)
        elif self.steps < getattr(self._torch, "total_steps", math.inf):
            self._torch.step()

    def state_dict(self) -> dict[str, Any]:
        state = {} if self._torch is None else self._torch.state_dict()
        plain = {name: value for name, value in state.items() if value is None or isinstance(value, (int, float, list))}
        return {"steps": self.steps, "torch": plain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        if self._torch is None:
            self._timm.step_update(self.steps)
        else:
            self._torch.load_state_dict(state["torch"])


def milestones(recipe: Recipe) -> list[float]:
    """Fractions of the run at which a multistep schedule drops.

    Raises:
        UserError: not increasing numbers between 0 and 1.
    """
    try:
        marks = [share(text) for text in recipe.milestones.split(",")]
    except ValueError:
        marks = []
    if not marks or marks != sorted(set(marks)) or marks[0] <= 0 or marks[-1] >= 1:
        raise UserError(
            f"recipe setting 'milestones' is {recipe.milestones!r}: expected increasing shares such as 0.5,0.75"
        )
    return marks


def points(recipe: Recipe) -> tuple[list[float], list[float]]:
    """Fractions of the run and factors of the rate, between which a piecewise schedule interpolates.

    Raises:
        UserError: not pairs of a non-decreasing fraction from 0 to 1 and a factor of at least 0.
    """
    try:
        pairs = share_pairs(recipe.points)
    except ValueError:
        pairs = []
    shares, factors = [at for at, _ in pairs], [factor for _, factor in pairs]
    rising = all(one <= other for one, other in pairwise([0.0, *shares, 1.0]))  # no for nan
    if not pairs or not rising or shares[0] != 0 or shares[-1] != 1 or not all(0 <= f < math.inf for f in factors):
        raise UserError(
            f"recipe setting 'points' is {recipe.points!r}: expected share:factor pairs such as 0:0,0.4:1,1:0"
        )
    return shares, factors
