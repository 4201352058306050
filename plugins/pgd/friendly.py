"""Friendly adversarial training: PGD that freezes an image once it is misclassified.

J. Zhang, X. Xu, B. Han, G. Niu, L. Cui, M. Sugiyama, M. Kankanhalli, Attacks Which Do Not Kill Training Make
Adversarial Learning Stronger, ICML 2020, arXiv:2002.11242.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from timm_robust.attacks.pgd import ObjectivePGD
from timm_robust.errors import UserError
from timm_robust.recipes.recipe import share_pairs


def patience(stop_after: str) -> list[tuple[float, int]]:
    """Parses `1` or `0:1,60/110:2` into (fraction of training where a count begins, count).

    Raises:
        UserError: not counts of at least 1 at increasing fractions from 0 on.
    """
    try:
        pairs = share_pairs(stop_after if ":" in stop_after else f"0:{stop_after}")
    except ValueError:
        pairs = []
    rising = all(one < other for (one, _), (other, _) in pairwise([*pairs, (1.0, 1.0)]))
    if not pairs or pairs[0][0] != 0 or not rising or not all(n >= 1 and n.is_integer() for _, n in pairs):
        raise UserError(
            f"option 'stop_after' is {stop_after!r}: expected a count such as 1, or counts by fraction of training "
            "such as 0:1,60/110:2"
        )
    return [(share, int(count)) for share, count in pairs]


class EarlyStoppedPGD(ObjectivePGD):
    """PGD that freezes each image after it was misclassified `stop_after` times; 1 stops at once.

    The whole batch goes through the network in each step: which images are frozen is not known on the host.

    Args:
        model: network under attack.
        eps, alpha: radius and step size, in units of the [0, 1] range.
        steps: number of steps.
        random_start: start at a uniform point of the ball, or at the image.
        stop_after: number of misclassified steps, tau + 1 in the paper's count.
    """

    def __init__(
        self, model: torch.nn.Module, eps: float, alpha: float, steps: int, random_start: bool, stop_after: int
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)
        self.stop_after = stop_after

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """`labels` int64 [B]."""
        adversarial = self.start(images) if self.random_start else images
        left = torch.full_like(labels, self.stop_after)
        for _ in range(self.steps):
            points = adversarial.detach().requires_grad_(True)
            logits = self.get_logits(points)
            left = left - (logits.argmax(1) != labels).long()
            (gradient,) = torch.autograd.grad(self.objective(logits, labels), points)
            stepped = self.step(points, gradient, images)
            adversarial = torch.where((left > 0).view(-1, 1, 1, 1), stepped, adversarial)
        return adversarial
