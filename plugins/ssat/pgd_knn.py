"""PGD in feature space against a k-NN classifier.

`wrong-class` is a reconstruction of SSAT's attack (guide mode 2), whose file was never released: it goes to the samples
of the nearest wrong class. `balanced` is the DkNN attack of the library that SSAT's authors build on (C. Sitawarin,
D. Wagner): it pulls wrong-class guides into the neighbourhood and pushes right-class ones out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchattacks.attack import Attack

from timm_robust.attacks.steps import signed_step

from .knn import Neighbours

RENEW = 100
"""Steps after which the balanced guides are chosen anew, from where the attack is by then."""


class PGDkNN(Attack):
    """Signed steps on the features, in units of the [0, 1] pixel range.

    Args:
        model: images in [0, 1] -> features [N, d], as the index has them.
        index: the classifier's database.
        eps: radius in Linf.
        alpha: length of a step.
        steps: number of steps.
        guides: samples that each image is steered by.
        guide: `wrong-class` or `balanced`.
        random_start: start at a uniform point of the ball, or at the image.
        best: return each image's iterate with most neighbours of wrong classes, which takes a search at each step, or
            the last iterate; by default as published: the best with balanced guides, else the last.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        index: Neighbours,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        guides: int = 300,
        guide: str = "wrong-class",
        random_start: bool = True,
        best: bool | None = None,
    ) -> None:
        super().__init__("PGDkNN", model)
        self.index, self.eps, self.alpha, self.steps = index, eps, alpha, steps
        self.guides, self.balanced, self.random_start = guides, guide == "balanced", random_start
        self.best = self.balanced if best is None else best

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = images.detach()
        if self.random_start:
            adversarial = (images + torch.empty_like(images).uniform_(-self.eps, self.eps)).clamp(0, 1)
        if not self.balanced:
            objective = approach(self.index, self._features(images), labels, self.guides)
        found, most = adversarial, torch.full_like(labels, -1)
        for number in range(self.steps):
            if self.balanced and number % RENEW == 0:
                objective = hinges(self.index, self._features(adversarial), labels, self.guides)
            adversarial = adversarial.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(self.get_logits(adversarial)), adversarial)
            adversarial = signed_step(adversarial, -gradient, images, alpha=self.alpha, eps=self.eps)
            if self.best:
                counts = self.index.counts(self._features(adversarial))
                wrong = self.index.k - counts.gather(1, labels[:, None]).squeeze(1)
                found = torch.where((wrong > most)[:, None, None, None], adversarial, found)
                most = torch.maximum(wrong, most)
        return found if self.best else adversarial

    def _features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.get_logits(images)


Objective = Callable[[Tensor], Tensor]
"""Features [B, d] -> scalar, the sum over the images of what an attack minimises."""


def approach(index: Neighbours, features: Tensor, labels: Tensor, guides: int) -> Objective:
    """The mean squared distance to guides of the nearest wrong class, up to a constant: that to their mean.

    Args:
        index: the classifier's database.
        features: [B, d], of the clean images.
        labels: int64 [B], the right classes.
        guides: number of guides.
    """
    centre = index.mean(*index.wrong_class(features, labels, guides))
    return lambda now: (now - centre).square().sum()


def hinges(index: Neighbours, features: Tensor, labels: Tensor, guides: int) -> Objective:
    """Over right guides max(0, t - d^2), over as many wrong ones max(0, d^2 - t); t reaches to the k-th neighbour.

    Args:
        index: the classifier's database.
        features: [B, d], for which the guides and t are taken.
        labels: int64 [B], the right classes.
        guides: number of guides, of both kinds together.
    """
    (same, is_same), (wrong, is_wrong) = index.balanced(features, labels, guides)
    threshold = index.radius(features)[:, None]

    def objective(now: Tensor) -> Tensor:
        distances = index.distances(now)
        near = (threshold - distances.gather(1, same)).clamp(min=0) * is_same
        far = (distances.gather(1, wrong) - threshold).clamp(min=0) * is_wrong
        return near.sum() + far.sum()

    return objective
