"""PGD in feature space against a k-NN classifier.

`wrong-class` is a reconstruction of SSAT's attack (guide mode 2), whose code was never released: it moves towards the
samples of the nearest wrong class. `balanced` is the DkNN attack of the library that SSAT's authors build on
(C. Sitawarin, D. Wagner): it pulls wrong-class guides into the neighbourhood and pushes right-class ones out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from timm_robust.attacks.pgd import ObjectivePGD

from .knn import Neighbours

RENEW = 100
"""Steps after which the balanced guides are chosen again, for the current points."""


class PGDkNN(ObjectivePGD):
    """PGD on the features, with an objective that is renewed along the way and optionally the best iterate returned.

    Args:
        model: images in [0, 1] -> features [N, d], in the space of the index.
        index: database of the classifier.
        eps, alpha: Linf radius and step size, in units of the [0, 1] range.
        steps: number of steps.
        guides: number of guide samples of each image.
        guide: `wrong-class` or `balanced`.
        random_start: start at a uniform point of the ball, or at the image.
        best: return each image's iterate with the most neighbours of wrong classes, which takes a search in each step,
            or the last iterate; by default as published: the best with balanced guides, else the last.
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
        super().__init__(model, eps, alpha, steps, random_start)
        self.index, self.guides, self.balanced = index, guides, guide == "balanced"
        self.best = self.balanced if best is None else best

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = self.start(images) if self.random_start else images.detach()
        if not self.balanced:
            objective = approach(self.index, self._features(images), labels, self.guides)
        found, most = adversarial, torch.full_like(labels, -1)
        for number in range(self.steps):
            if self.balanced and number % RENEW == 0:
                objective = hinges(self.index, self._features(adversarial), labels, self.guides)
            adversarial = adversarial.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(self.get_logits(adversarial)), adversarial)
            adversarial = self.step(adversarial, -gradient, images)
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
"""Features [B, d] -> scalar that the attack minimises, summed over the images."""


def approach(index: Neighbours, features: Tensor, labels: Tensor, guides: int) -> Objective:
    """Mean squared distance to guides of the nearest wrong class, up to a constant: the squared distance to their mean.

    Args:
        index: database of the classifier.
        features: [B, d], of the clean images.
        labels: int64 [B], right classes.
        guides: number of guides.
    """
    centre = index.mean(*index.wrong_class(features, labels, guides))
    return lambda now: (now - centre).square().sum()


def hinges(index: Neighbours, features: Tensor, labels: Tensor, guides: int) -> Objective:
    """Sum of max(0, t - d^2) over right guides and max(0, d^2 - t) over wrong ones; t is d^2 of the k-th neighbour.

    Args:
        index: database of the classifier.
        features: [B, d], for which guides and t are computed.
        labels: int64 [B], right classes.
        guides: number of guides of both kinds together.
    """
    (same, is_same), (wrong, is_wrong) = index.balanced(features, labels, guides)
    threshold = index.radius(features)[:, None]

    def objective(now: Tensor) -> Tensor:
        distances = index.distances(now)
        near = (threshold - distances.gather(1, same)).clamp(min=0) * is_same
        far = (distances.gather(1, wrong) - threshold).clamp(min=0) * is_wrong
        return near.sum() + far.sum()

    return objective
