"""The host's conformance checks, the recipe, and the penalty against a number worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm_robust_logit_squeeze.logit_squeeze import squeeze_penalty

from timm_robust.recipes.presets import find_recipe, make_recipe
from timm_robust.testing import parametrize_with_checks


@parametrize_with_checks("logit-squeeze")
def test_conformance(check: Callable[[], None]) -> None:
    check()


def test_recipe() -> None:
    """Found through the hook; that its values are valid and its command works is a conformance check."""
    assert find_recipe("logit-squeeze-quick").distribution in ("", "timm-robust-logit-squeeze")
    recipe = make_recipe("logit-squeeze-quick", {}, {"lr": 0.05})
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (2, 0.05, 128)


def test_penalty() -> None:
    assert squeeze_penalty(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == (25 + 1) / 2
