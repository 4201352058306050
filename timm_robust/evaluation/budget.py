"""Cost of AutoAttack: number of images that a time budget allows on this machine, and progress in forward passes."""

from __future__ import annotations

import time

import torch

from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.utils.progress import Progress

FORWARDS_PER_IMAGE = 12_500
"""Cost of an image that no attack breaks, in forward passes: Square alone takes 5,000, and about 40 % of the time."""


def affordable(inputs: EvalInputs, seconds: float) -> int:
    """Number of images that fit into `seconds` if no attack broke one, at least 8 and at most all."""
    model, images, device = inputs.model, inputs.images, inputs.device
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
"""Cost of each attack on an image that withstands it, in forward passes: steps, and what their backward passes add."""


class Meter:
    """Work done and in all, in forward passes, if the images that are still correct stay so to the end.

    Args:
        attacks: in the order they run.
        still_correct: number of images before the first.
        passes: forward passes of each attack on one image.
    """

    def __init__(self, attacks: list[str], still_correct: int, passes: dict[str, int] | None = None) -> None:
        self.attacks, self.passes = attacks, passes or FORWARDS
        self.done, self.running = 0.0, ""
        self.began_with = self.left = still_correct

    def update(self, attack: str, share_done: float, still_correct: int) -> tuple[float, float]:
        """Forward passes done, and in all.

        Args:
            attack: the one that runs.
            share_done: of this attack, in [0, 1].
            still_correct: number of images now.
        """
        if attack != self.running:
            if self.running:
                self.done += self.passes[self.running] * self.began_with
            self.began_with = self.left if self.running else still_correct  # a resumed run begins here
            self.running = attack
        self.left = still_correct
        now = self.passes[attack] * self.began_with
        later = sum(self.passes[name] for name in self.attacks[self.attacks.index(attack) + 1 :]) * still_correct
        return self.done + share_done * now, self.done + now + later


class EnsembleProgress:
    """Reports the attacks of an ensemble as one task, with the robust accuracy so far.

    Args:
        version: of AutoAttack.
        attacks: in the order they run.
        n: number of images.
        progress: None reports nothing.
    """

    def __init__(self, version: str, attacks: list[str], n: int, progress: Progress | None) -> None:
        self.title = "autoattack" if version == "standard" else f"autoattack-{version}"
        self.meter, self.n, self.progress = Meter(attacks, n), n, progress

    def update(self, attack: str, done: int, total: int, robust: float) -> None:
        """Reports `done` of `total` parts of an attack, and the share of images still classified correctly."""
        if self.progress is None:
            return
        work, whole = self.meter.update(attack, done / max(total, 1), round(robust * self.n))
        self.progress(f"{self.title} {attack}", work, max(whole, 1.0), f"robust so far {robust:.1%}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
