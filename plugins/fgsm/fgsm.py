"""FGSM adversarial training.

I. J. Goodfellow, J. Shlens, C. Szegedy, Explaining and Harnessing Adversarial Examples, ICLR 2015, arXiv:1412.6572.
Trained on adversarial images alone, as the later literature does (the paper mixes clean ones in).
"""

from __future__ import annotations

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed

from .options import FgsmOptions


class FGSM(Defense):
    """One signed step of eps from the clean image; cross-entropy on the result."""

    options: FgsmOptions

    def perturb(self, batch: Batch) -> Perturbed:
        step = self.times_eps(self.options.step_ratio)
        return Perturbed(self.attack(batch.images, batch.targets, "fgsm", bn=self.options.attack_bn, eps=step))
