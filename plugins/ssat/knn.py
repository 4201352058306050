"""Exact k-nearest-neighbour classification, its credibility, and a differentiable surrogate.

N. Papernot, P. McDaniel, Deep k-Nearest Neighbors, arXiv:1803.04765, for the credibility.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 2**26
"""Maximum number of distances in memory at once."""


class Neighbours:
    """Database of labelled features with exact search, on the features' device.

    Args:
        features: float [N, d].
        labels: int64 [N].
        num_classes: number of classes K.
        k: number of neighbours that vote; at most N.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, k: int = 75) -> None:
        self.features, self.labels, self.num_classes, self.k = features, labels, num_classes, min(k, len(labels))
        self._squares = features.square().sum(1)

    def distances(self, queries: Tensor) -> Tensor:
        """Squared Euclidean distances, [B, N] for queries [B, d]."""
        products = queries @ self.features.t()
        return (queries.square().sum(1, keepdim=True) + self._squares - 2 * products).clamp(min=0)

    @torch.no_grad()
    def counts(self, queries: Tensor) -> Tensor:
        """Number of each query's k nearest samples in each class, int64 [B, K]."""
        found = [self.distances(part).topk(self.k, largest=False).indices for (part,) in self._parts(queries)]
        labels = self.labels[torch.cat(found)]
        return torch.zeros(len(queries), self.num_classes, dtype=torch.long, device=labels.device).scatter_add_(
            1, labels, torch.ones_like(labels)
        )

    def vote(self, queries: Tensor) -> Tensor:
        """Majority class of the neighbours, int64 [B]; the lowest on ties."""
        return self.counts(queries).argmax(1)  # argmax returns the first on ties

    @torch.no_grad()
    def radius(self, queries: Tensor) -> Tensor:
        """Squared distance to the k-th neighbour, [B]."""
        found = [self.distances(part).topk(self.k, largest=False).values[:, -1] for (part,) in self._parts(queries)]
        return torch.cat(found)

    @torch.no_grad()
    def wrong_class(self, queries: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` samples nearest to each query's nearest wrong-class sample, all of that class.

        Args:
            queries: [B, d].
            targets: int64 [B], right classes.
            count: number of samples M.

        Returns:
            (positions int64 [B, M], validity bool [B, M]): a small class has fewer valid ones.
        """
        found = []
        for part, right in self._parts(queries, targets):
            others = self.distances(part).masked_fill(self.labels == right[:, None], torch.inf)
            first = others.argmin(1)
            found.append(self._nearest(self.features[first], self.labels[first], count))
        return _joined(found)

    @torch.no_grad()
    def balanced(self, queries: Tensor, targets: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """The `count` / 2 nearest samples of the right class, and of the wrong class whose nearest are closest.

        Returns:
            (positions, validity) of both, as in `wrong_class`.
        """
        half, same, wrong = max(1, count // 2), [], []
        for part, right in self._parts(queries, targets):
            distances, means = self.distances(part), []
            for number in range(self.num_classes):
                own = distances[:, self.labels == number]
                nearest = own.topk(min(half, own.shape[1]), largest=False).values
                means.append(nearest.mean(1))  # nan for a class without samples
            mean = torch.stack(means, 1).nan_to_num(torch.inf).scatter(1, right[:, None], torch.inf)
            same.append(self._nearest(part, right, half))
            wrong.append(self._nearest(part, mean.argmin(1), half))
        return _joined(same), _joined(wrong)

    def mean(self, positions: Tensor, counted: Tensor) -> Tensor:
        """Mean feature of the valid samples of each query, [B, d]."""
        weights = self.features.new_zeros(len(positions), len(self.labels))
        weights.scatter_(1, positions, counted.to(weights.dtype))
        return weights @ self.features / weights.sum(1, keepdim=True)

    def _nearest(self, queries: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` samples of one class nearest to each query."""
        distances = self.distances(queries).masked_fill(self.labels != classes[:, None], torch.inf)
        values, positions = distances.topk(min(count, len(self.labels)), largest=False)
        return positions, values.isfinite()

    def _parts(self, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Splits queries and their values into parts whose distances fit into memory."""
        rows = max(1, CHUNK // len(self.labels))
        return zip(*(value.split(rows) for value in values), strict=True)


def credibility(counts: Tensor, calibration_counts: Tensor, calibration_targets: Tensor) -> Tensor:
    """Fraction of the calibration samples that conform to their class no better than a query to its predicted class.

    Args:
        counts: int64 [B, K], of the queries, see `Neighbours.counts`.
        calibration_counts, calibration_targets: int64 [M, K] and [M], of held-out samples.

    Returns:
        float [B] in [0, 1].
    """
    k = counts[0].sum()
    strangeness = k - calibration_counts.gather(1, calibration_targets[:, None]).squeeze(1)
    return (strangeness >= (k - counts.max(1).values)[:, None]).float().mean(1)


def soft_knn_logits(index: Neighbours, queries: Tensor, tau: float) -> Tensor:
    """Logits of the smooth surrogate: logit_c is the logsumexp of -d^2 / tau over all samples of class c.

    Args:
        index: database.
        queries: float [B, d].
        tau: temperature, in units of squared distance.

    Returns:
        [B, K].
    """
    closeness = -index.distances(queries) / tau
    classes = index.labels.expand(len(queries), -1)
    top = closeness.new_full((len(queries), index.num_classes), -torch.inf)
    top = top.scatter_reduce(1, classes, closeness.detach(), "amax")  # per class, or a distant class would underflow
    members = F.one_hot(index.labels, index.num_classes).to(closeness.dtype)
    return ((closeness - top.gather(1, classes)).exp() @ members).log() + top


class Vote(nn.Module):
    """k-NN classifier: images -> vote counts, float [N, K], without a gradient.

    Args:
        encoder: images -> features.
        index: database.
    """

    def __init__(self, encoder: nn.Module, index: Neighbours) -> None:
        super().__init__()
        self.encoder, self.index = encoder, index

    def forward(self, images: Tensor) -> Tensor:
        return self.index.counts(self.encoder(images)).float()


class SoftVote(nn.Module):
    """Surrogate classifier: images -> logits, [N, K].

    Args:
        encoder: images -> features.
        index: database.
        tau: temperature, see `soft_knn_logits`.
    """

    def __init__(self, encoder: nn.Module, index: Neighbours, tau: float) -> None:
        super().__init__()
        self.encoder, self.index, self.tau = encoder, index, tau

    def forward(self, images: Tensor) -> Tensor:
        return soft_knn_logits(self.index, self.encoder(images), self.tau)


def fit_temperature(index: Neighbours, queries: Tensor) -> tuple[float, float]:
    """The temperature at which the surrogate agrees best with the vote, and the fraction of queries where it does.

    Args:
        index: database.
        queries: float [B, d], of held-out images.
    """
    votes, typical = index.vote(queries), index.radius(queries).mean().item()
    best = (0.0, -1.0)
    for power in range(-6, 2):
        tau = max(typical, 1e-12) * 2.0**power
        with torch.no_grad():
            agreement = (soft_knn_logits(index, queries, tau).argmax(1) == votes).float().mean().item()
        best = max(best, (tau, agreement), key=lambda pair: pair[1])
    return best


def _joined(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    positions, counted = zip(*found, strict=True)
    return torch.cat(positions), torch.cat(counted)
