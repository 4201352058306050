"""How many images AutoAttack can take in a given time on this machine."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

FORWARDS_PER_IMAGE = 12_500
"""Cost of an image that stands to the end, in forward passes: Square alone takes 5,000, and about 40 % of the time."""


def affordable(model: nn.Module, images: Tensor, seconds: float) -> int:
    """Images that fit into `seconds` if every one stood to the end, at least 8 and at most all.

    Args:
        model: in eval mode.
        images: float [N, C, H, W] in [0, 1], the test images in order.
    """
    device = next(model.parameters()).device
    n = min(32, len(images))
    with torch.no_grad():
        for _ in range(3):
            sample = images[:n].to(device)
            model(sample)  # warm-up at this size
            _wait(device)
            started = time.perf_counter()
            model(sample)
            _wait(device)
            per_image = (time.perf_counter() - started) / n
            n = max(min(int(seconds / (FORWARDS_PER_IMAGE * per_image)), len(images)), min(8, len(images)))
    return n


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
