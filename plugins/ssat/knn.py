"""Exact k-nearest-neighbour classification, its credibility, and its differentiable surrogate.

N. Papernot, P. McDaniel, Deep k-Nearest Neighbors, arXiv:1803.04765, for the credibility.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 2**26
"""Distances that are held at once."""


class Neighbours:
    """Labelled features that are searched exactly, on whatever device they are.

    Args:
        features: float [N, d].
        labels: int64 [N].
        num_classes: K.
        k: neighbours that vote; all where there are fewer.
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
        """How many of each query's k nearest samples are of each class, int64 [B, K]."""
        found = [self.distances(part).topk(self.k, largest=False).indices for (part,) in self._parts(queries)]
        labels = self.labels[torch.cat(found)]
        return torch.zeros(len(queries), self.num_classes, dtype=torch.long, device=labels.device).scatter_add_(
            1, labels, torch.ones_like(labels)
        )

    def vote(self, queries: Tensor) -> Tensor:
        """The class of most neighbours, int64 [B]; of equals the lowest."""
        return self.counts(queries).argmax(1)  # argmax gives the first of equals

    @torch.no_grad()
    def radius(self, queries: Tensor) -> Tensor:
        """Squared distance to the k-th neighbour, [B]."""
        found = [self.distances(part).topk(self.k, largest=False).values[:, -1] for (part,) in self._parts(queries)]
        return torch.cat(found)

    @torch.no_grad()
    def wrong_class(self, queries: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The nearest sample of another class, and the `count` of that class nearest to it.

        Args:
            queries: [B, d].
            targets: int64 [B], the right classes.

        Returns:
            (positions int64 [B, M], whether each counts bool [B, M]): a small class has fewer.
        """
        found = []
        for part, right in self._parts(queries, targets):
            others = self.distances(part).masked_fill(self.labels == right[:, None], torch.inf)
            first = others.argmin(1)
            found.append(self._nearest(self.features[first], self.labels[first], count))
        return _joined(found)

    @torch.no_grad()
    def balanced(self, queries: Tensor, targets: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Half of `count` nearest samples of the right class, and of the wrong class whose nearest are nearest.

        Returns:
            (positions, whether each counts) of both, as `wrong_class` gives them.
        """
        half, same, wrong = max(1, count // 2), [], []
        for part, right in self._parts(queries, targets):
            distances, means = self.distances(part), []
            for number in range(self.num_classes):
                own = distances[:, self.labels == number]
                nearest = own.topk(min(half, own.shape[1]), largest=False).values
                means.append(nearest.mean(1))  # nan of a class without samples
            mean = torch.stack(means, 1).nan_to_num(torch.inf).scatter(1, right[:, None], torch.inf)
            same.append(self._nearest(part, right, half))
            wrong.append(self._nearest(part, mean.argmin(1), half))
        return _joined(same), _joined(wrong)

    def mean(self, positions: Tensor, counted: Tensor) -> Tensor:
        """Mean feature of some samples for each query, [B, d]."""
        weights = self.features.new_zeros(len(positions), len(self.labels))
        weights.scatter_(1, positions, counted.to(weights.dtype))
        return weights @ self.features / weights.sum(1, keepdim=True)

    def _nearest(self, queries: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` samples of one class nearest to each query."""
        distances = self.distances(queries).masked_fill(self.labels != classes[:, None], torch.inf)
        values, positions = distances.topk(min(count, len(self.labels)), largest=False)
        return positions, values.isfinite()

    def _parts(self, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Queries, and what belongs to each, in parts whose distances fit."""
        rows = max(1, CHUNK // len(self.labels))
        return zip(*(value.split(rows) for value in values), strict=True)


def credibility(counts: Tensor, calibration_counts: Tensor, calibration_targets: Tensor) -> Tensor:
    """Share of the calibration samples that conform no better to their own class than a query to its voted one.

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
    """The surrogate: logit_c is the logsumexp of -d^2 / tau over the samples of class c, all of them: it is smooth.

    Args:
        queries: float [B, d].
        tau: temperature, in units of squared distance.

    Returns:
        [B, K].
    """
    closeness = -index.distances(queries) / tau
    classes = index.labels.expand(len(queries), -1)
    top = closeness.new_full((len(queries), index.num_classes), -torch.inf)
    top = top.scatter_reduce(1, classes, closeness.detach(), "amax")  # by class, or a far one would underflow
    members = F.one_hot(index.labels, index.num_classes).to(closeness.dtype)
    return ((closeness - top.gather(1, classes)).exp() @ members).log() + top


class Vote(nn.Module):
    """Images -> counts of votes, float [N, K]: a classifier without a gradient.

    Args:
        encoder: images -> features.
        index: the database.
    """

    def __init__(self, encoder: nn.Module, index: Neighbours) -> None:
        super().__init__()
        self.encoder, self.index = encoder, index

    def forward(self, images: Tensor) -> Tensor:
        return self.index.counts(self.encoder(images)).float()


class SoftVote(nn.Module):
    """Images -> logits of the surrogate, [N, K].

    Args:
        encoder: images -> features.
        index: the database.
        tau: temperature, see `soft_knn_logits`.
    """

    def __init__(self, encoder: nn.Module, index: Neighbours, tau: float) -> None:
        super().__init__()
        self.encoder, self.index, self.tau = encoder, index, tau

    def forward(self, images: Tensor) -> Tensor:
        return soft_knn_logits(self.index, self.encoder(images), self.tau)


def fit_temperature(index: Neighbours, queries: Tensor) -> tuple[float, float]:
    """The temperature at which the surrogate agrees most with the vote, and the share of queries where it does.

    Args:
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
