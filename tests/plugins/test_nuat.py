"""The nuclear distance of NuAT: its gradient at low rank."""

from __future__ import annotations

import pytest
import torch
from timm_robust_plugins.nuat.nuat import nuclear_distance


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_nuclear_distance_of_low_rank_has_a_finite_gradient(rank):
    torch.manual_seed(0)
    logits = (torch.randn(8, rank) @ torch.randn(rank, 10)).requires_grad_(True)
    nuclear_distance(torch.zeros(8, 10), logits, 8).backward()
    assert logits.grad.isfinite().all()
