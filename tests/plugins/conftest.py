"""Images at both ends of the pixel range."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def images() -> torch.Tensor:
    """Some at the ends of the pixel range."""
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).mul(1.2).sub(0.1).clamp(0, 1)
