"""Uncertainty: confidence intervals for an accuracy on n images, and paired tests of two models on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from timm_robust.errors import UserError

LEVEL = 0.95


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval for a share: close to its level already for few images, and never outside [0, 1].

    E. B. Wilson, JASA 22, 1927; recommended by L. D. Brown, T. T. Cai, A. DasGupta, Statistical Science 16, 2001.

    Args:
        successes: number of images classified correctly, 0 to n.
        n: number of images.
        level: confidence level, between 0 and 1.

    Returns:
        lower and upper end, in [0, 1].

    Raises:
        UserError: impossible counts or level.
    """
    _check(successes, n, level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def clopper_pearson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval for a share: covers the true value at least as often as its level says, and so is wider.

    C. J. Clopper, E. S. Pearson, Biometrika 26, 1934. Arguments, result and errors as for `wilson`.
    """
    from scipy.stats import beta  # type: ignore[import-untyped]  # half a second, rarely used

    _check(successes, n, level)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def _check(successes: int, n: int, level: float) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"{successes} of {n} is no share: expected at least one image, and 0 to all of them right")
    if not 0 < level < 1:
        raise UserError(f"level {level} is out of range: expected a number between 0 and 1 such as 0.95")


@dataclass(frozen=True)
class Paired:
    """Comparison of two models, A and B, on the same images.

    Attributes:
        n: number of images.
        both, only_a, only_b, neither: number of images that both, one or none of them classifies correctly.
        difference: accuracy of A minus that of B, in [-1, 1].
        low, high: confidence interval of the difference.
        p_value: of McNemar's exact test, in (0, 1]: the probability that only_a and only_b are at least as far apart if
            A and B are equally good.
        level: confidence level of the interval.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p_value: float
    level: float = LEVEL

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired(a: Sequence[int | bool], b: Sequence[int | bool], level: float = LEVEL) -> Paired:
    """Compares two vectors of verdicts, image by image: far sharper than comparing two intervals.

    The interval is R. G. Newcombe's (Statistics in Medicine 17, 1998, pp. 2635-2650, method 10), the test is
    Q. McNemar's (Psychometrika 12, 1947) with exact binomial tails.

    Args:
        a, b: one verdict per image in the same order, 1 or True if it was classified correctly.
        level: confidence level of the interval.

    Raises:
        UserError: vectors of different lengths, or empty ones.
    """
    if len(a) != len(b):
        raise UserError(f"{len(a)} verdicts cannot be compared with {len(b)}: expected the same images for both")
    pairs = [(bool(one), bool(other)) for one, other in zip(a, b, strict=True)]
    both, only_a, only_b, neither = (
        pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
    )
    low, high = newcombe(both, only_a, only_b, neither, level)
    difference = (only_a - only_b) / len(pairs)
    return Paired(len(pairs), both, only_a, only_b, neither, difference, low, high, mcnemar(only_a, only_b), level)


def newcombe(both: int, only_a: int, only_b: int, neither: int, level: float = LEVEL) -> tuple[float, float]:
    """Confidence interval for the difference of two shares on the same images; see `paired`.

    Returns:
        lower and upper end, in [-1, 1].
    """
    n = both + only_a + only_b + neither
    low_a, high_a = wilson(both + only_a, n, level)
    low_b, high_b = wilson(both + only_b, n, level)
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    together = float(both * neither - only_a * only_b)
    together = max(together - n / 2, 0.0) if together > 0 else together  # his continuity correction
    phi = together / math.sqrt(product) if product else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = share_a - share_b
    low = difference - reach(share_a - low_a, high_b - share_b)
    high = difference + reach(high_a - share_a, share_b - low_b)
    return max(low, -1.0), min(high, 1.0)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of the exact test: if A and B are equally good, the images on which they differ are tosses of a
    fair coin."""
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**tosses)
