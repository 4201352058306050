"""Intervals and paired tests against SciPy and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from timm_robust.errors import UserError
from timm_robust.evaluation.statistics import clopper_pearson, mcnemar, newcombe, paired, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (50, 100), (10, 10), (4821, 10000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_are_those_of_scipy(k, n, level):
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = stats.binomtest(k, n).proportion_ci(level, method)
        assert ours(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_its_definition():
    """The ends are the shares from which the observed one is exactly z standard errors away."""
    z = stats.norm.ppf(0.975)
    for end in wilson(37, 200):
        assert abs(37 / 200 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 200), rel=1e-12)


def test_newcombe_against_published_values():
    """Newcombe 1998, Table II, method 10; and the example of Fagerland, Lydersen, Laake 2013."""
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(36, 2, 12, 0) == pytest.approx((-0.3404, -0.0569), abs=5e-5)
    assert newcombe(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert newcombe(50, 0, 0, 0)[0] < 0 < newcombe(50, 0, 0, 0)[1]


def test_newcombe_covers():
    draw = np.random.default_rng(0)
    shares = np.array([0.45, 0.1, 0.05, 0.4])
    tables = draw.multinomial(120, shares, size=2000)
    hits = sum(low <= 0.05 <= high for low, high in (newcombe(*map(int, table)) for table in tables))
    assert 0.93 <= hits / 2000 <= 0.97


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 9), (40, 40), (741, 442)])
def test_mcnemar_is_a_binomial_test(b, c):
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_pairs():
    found = paired([1, 1, 0, 0, 1], [True, False, True, False, False])
    assert (found.both, found.only_a, found.only_b, found.neither) == (1, 2, 1, 1)
    assert found.difference == pytest.approx(0.2) and found.low < 0.2 < found.high
    with pytest.raises(UserError, match="3 verdicts cannot be compared with 2"):
        paired([1, 1, 0], [1, 0])
    with pytest.raises(UserError, match="0 of 0 is no share"):
        paired([], [])
    with pytest.raises(UserError, match="level 95 is out of range"):
        wilson(1, 2, 95)
