"""Shares of a run in a recipe."""

from __future__ import annotations

import pytest

from tests.support import learning_rates
from timm_robust.errors import UserError
from timm_robust.recipes.presets import make_recipe
from timm_robust.recipes.recipe import share


@pytest.mark.parametrize("text", ["1/0", "a/2", "", "1/2/3", "1/x"])
def test_a_share_is_a_number_or_a_fraction(text):
    assert share("100/110") == 100 / 110 and share(" 0.25 ") == 0.25
    with pytest.raises(ValueError):
        share(text)
    with pytest.raises(UserError, match="expected increasing shares"):
        learning_rates(make_recipe("rice", {}, {"milestones": f"0.5,{text}"}))
