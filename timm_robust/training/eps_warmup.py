"""Warm-up of the radius: the first epochs train against a smaller ball (Qin et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import replace

from timm_robust.recipes.recipe import Recipe
from timm_robust.threat import Threat


def eps_factor(recipe: Recipe, done: float) -> float:
    """Fraction of the radius at which a step trains: (done + 1) / W with W epochs of warm-up, at most 1.

    As in the code of Bag of Tricks (Pang et al., ICLR 2021), whose last warm-up epoch overshoots to (W + 1) / W. A
    warm-up longer than the run ends with it.

    Args:
        done: epochs after that step, with fractions.
    """
    epochs = min(recipe.eps_warmup_epochs, recipe.epochs)
    return min(1.0, (done + 1) / epochs) if epochs else 1.0


def warmed_up(threat: Threat, recipe: Recipe, done: float) -> Threat:
    """The threat at which a step trains.

    Args:
        threat: the run's full threat.
        done: epochs after that step, with fractions.
    """
    factor = eps_factor(recipe, done)
    if factor == 1.0:
        return threat
    return replace(threat, eps=factor * threat.eps, eps_text=f"{factor:.3f} * {threat.eps_text}")
