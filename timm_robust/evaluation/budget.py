"""What AutoAttack costs: how many images fit into a given time on this machine, and how far a run is."""

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


FORWARDS = {"apgd-ce": 250, "apgd-dlr": 250, "apgd-t": 2_250, "fab": 2_500, "fab-t": 3_600, "square": 5_000}
"""Cost of each attack on an image that stands, in forward passes: steps, and what a step's backward pass adds."""


class Meter:
    """How much of a run is done, in forward passes, if all images that stand now stand to the end.

    Args:
        attacks: in the order they run.
        standing: how many images stand before the first.
        passes: forward passes of each attack on one image.
    """

    def __init__(self, attacks: list[str], standing: int, passes: dict[str, int] | None = None) -> None:
        self.attacks, self.passes = attacks, passes or FORWARDS
        self.done, self.running = 0.0, ""
        self.began_with = self.stood = standing

    def update(self, attack: str, share_done: float, standing: int) -> tuple[float, float]:
        """Passes done, and in all.

        Args:
            attack: the one that runs.
            share_done: how much of it is done, in [0, 1].
            standing: how many images stand now.
        """
        if attack != self.running:
            if self.running:
                self.done += self.passes[self.running] * self.began_with
            self.began_with = self.stood if self.running else standing  # or a run that goes on begins here
            self.running = attack
        self.stood = standing
        now = self.passes[attack] * self.began_with
        later = sum(self.passes[name] for name in self.attacks[self.attacks.index(attack) + 1 :]) * standing
        return self.done + share_done * now, self.done + now + later


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
