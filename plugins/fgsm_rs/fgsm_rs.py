"""FGSM with a random start.

E. Wong, L. Rice, J. Z. Kolter, Fast is better than free: revisiting adversarial training, ICLR 2020, arXiv:2001.03994.
"""

from __future__ import annotations

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed

from .options import FgsmRsOptions


class FGSMRS(Defense):
    """One signed step of 1.25 eps from a uniform point of the ball, projected; cross-entropy on the result."""

    options: FgsmRsOptions

    def perturb(self, batch: Batch) -> Perturbed:
        step = self.times_eps(self.options.step_ratio)
        return Perturbed(self.attack(batch.images, batch.targets, "ffgsm", bn=self.options.attack_bn, alpha=step))
