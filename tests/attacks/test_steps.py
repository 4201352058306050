"""The projection into the threat ball."""

from __future__ import annotations

import torch

from timm_robust.attacks.steps import project
from timm_robust.threat import Threat


def test_project_is_the_nearest_point():
    images, far = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[0.9, 0.2]]]])
    ball = Threat("Linf", 0.1, "0.1")
    assert torch.allclose(project(far, images, ball), torch.tensor([[[[0.6, 0.4]]]]))
    ball = Threat("L2", 0.25, "0.25")
    assert torch.allclose(project(far, images, ball), images + torch.tensor([[[[0.2, -0.15]]]]))
