"""Warm-up of the radius: the first epochs train against a smaller ball (Qin et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timm_robust.recipes.recipe import Recipe
    from timm_robust.training.engine import Engine


def eps_factor(recipe: Recipe, done: float) -> float:
    """Share of the radius at which a step trains: (done + 1) / W with W epochs of warm-up, at most 1.

    As in the code of Bag of Tricks (Pang et al., ICLR 2021), whose last warm-up epoch overshoots to (W + 1) / W. A
    warm-up longer than the run ends with it.

    Args:
        done: epochs after that step, a fraction within an epoch.
    """
    epochs = min(recipe.eps_warmup_epochs, recipe.epochs)
    return min(1.0, (done + 1) / epochs) if epochs else 1.0


def warm_up_eps(engine: Engine, step: int) -> None:
    """Sets the radius of the coming step for the method and its attacks; checks and the watch keep the full one.

    Args:
        step: of the epoch, from 0.
    """
    full = engine.config.threat
    factor = eps_factor(engine.config.recipe, engine.epoch + (step + 1) / engine.steps)
    threat = full if factor == 1.0 else replace(full, eps=factor * full.eps, eps_text=f"{factor:.3f} * {full.eps_text}")
    if threat != engine.attacker.threat:
        engine.run.threat = threat
        engine.attacker.retarget(threat)
