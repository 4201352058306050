"""Signs of masked gradients in checkpoints: mistakes told in one sentence."""

from __future__ import annotations

import pytest

from timm_robust.api.masking import masking
from timm_robust.errors import UserError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: masking(run, json="nowhere/m.json"), "the folder of the record"),
        (lambda run: masking(run, draws=0), "draws is 0: expected at least 1"),
        (lambda run: masking(run, examples=999), "examples is 999, the test split of digits has only"),
    ],
)
def test_mistakes_of_a_user(shared_run, call, message):
    with pytest.raises(UserError, match=message):
        call(shared_run)
