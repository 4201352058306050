"""InfoNCE bound on the mutual information between the features of two views of each image.

P. Bachman, R. D. Hjelm, W. Buchwalter, Learning Representations by Maximizing Mutual Information Across Views, NeurIPS
2019, arXiv:1906.00910, as SSAT uses it. Pure functions: random draws are arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """Features of one view of a batch of images.

    Attributes:
        vector: global feature, [B, d].
        maps: local features, each [B, d, L] with L places; the coarsest first.
    """

    vector: Tensor
    maps: tuple[Tensor, ...]


def scores(sources: Tensor, targets: Tensor) -> Tensor:
    """Similarity of each source to each place of each image: s_i . t_jl / sqrt(d).

    Args:
        sources: [B, d].
        targets: [B, d, L].

    Returns:
        [B, B, L], at least float32.
    """
    products = torch.einsum("id,jdl->ijl", sources, targets)
    return products.to(torch.promote_types(products.dtype, torch.float32)) / sources.shape[1] ** 0.5


def nce(scores: Tensor, *, clip: float = 20.0) -> Tensor:
    """Noise-contrastive loss: each place of the image itself against all places of all other images.

    The other places of the image itself are in neither set. The minimum is log(1 + L (B - 1) exp(-2 clip)); for equal
    scores it is log(1 + L (B - 1)).

    Args:
        scores: [B, B, L], see `scores`; B at least 2.
        clip: bound c of the scores, which are clipped smoothly by c tanh(u / c).

    Returns:
        scalar, mean over images and places.
    """
    clipped = clip * torch.tanh(scores / clip)
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    positives = clipped.diagonal(dim1=0, dim2=1).t()  # [B, L]
    others = clipped.masked_fill(itself[:, :, None], -torch.inf).flatten(1).logsumexp(1)
    return (torch.logaddexp(positives, others[:, None]) - positives).mean()


def information_loss(
    one: Features, other: Features, places: Tensor, *, clip: float = 20.0, penalty: float = 0.0
) -> Tensor:
    """Minus the information that two views share, in six terms for two maps: 1-5, 1-7 and 5-5, in both directions.

    Args:
        one, other: features of the views.
        places: int64 [2, B], place on the coarsest map that also is a source, for each view and image.
        clip: see `nce`.
        penalty: weight of the mean squared score; 0.05 in AMDIM's pre-training, 0 in SSAT's fine-tuning.
    """
    pairs = [
        *((one.vector, target) for target in other.maps),
        *((other.vector, target) for target in one.maps),
    ]
    if one.maps[0].shape[2] > 1:
        images = torch.arange(len(one.vector), device=places.device)
        pairs.append((one.maps[0][images, :, places[0]], other.maps[0]))
        pairs.append((other.maps[0][images, :, places[1]], one.maps[0]))
    terms = [scores(*pair) for pair in pairs]
    return 0.5 * torch.stack([nce(term, clip=clip) + penalty * term.square().mean() for term in terms]).sum()
