"""The host's conformance checks, and the penalty against a number worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm_robust_logit_squeeze.logit_squeeze import squeeze_penalty

from timm_robust.testing import parametrize_with_checks


@parametrize_with_checks("logit-squeeze")
def test_conformance(check: Callable[[], None]) -> None:
    check()


def test_penalty() -> None:
    assert squeeze_penalty(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == (25 + 1) / 2
