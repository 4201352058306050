"""Threats: radii as they are written, and defaults."""

from __future__ import annotations

from fractions import Fraction

import pytest

from timm_robust.errors import UserError
from timm_robust.threat import EVALUATION_NORMS, make_threat, parse_eps


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("8/255", "8/255"),
        (Fraction(8, 255), "8/255"),
        (8 / 255, "8/255"),
        ("0.1", "0.1"),
        (" 4 / 255 ", "4/255"),
        (0, "0"),
    ],
)
def test_radii(given, text):
    eps, said = parse_eps(given)
    assert said == text
    top, _, bottom = text.partition("/")
    assert eps == pytest.approx(float(top) / float(bottom or 1))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (8, "did you mean 8/255"),
        ("8", "did you mean 8/255"),
        ("16/8", "did you mean 8/255"),
        ("abc", "is not a number"),
        (-0.1, "expected a radius of at least 0"),
        ("1/0", "is not a fraction"),
        ("nan", "out of range"),
    ],
)
def test_wrong_radii(given, hint):
    with pytest.raises(UserError, match=hint):
        parse_eps(given)


def test_defaults():
    assert str(make_threat(image_size=32)) == "Linf 8/255"
    assert str(make_threat(image_size=64)) == "Linf 8/255"
    assert str(make_threat(image_size=65)) == "Linf 4/255"
    assert str(make_threat("l2", image_size=32)) == "L2 0.5"
    assert make_threat("L2", 3, image_size=224).eps == 3
    with pytest.raises(UserError, match="unknown norm 'L1'"):
        make_threat("L1", image_size=32)


def test_l1_is_for_evaluation():
    assert make_threat("l1", image_size=32, norms=EVALUATION_NORMS).eps == 12
    assert make_threat("L1", image_size=224, norms=EVALUATION_NORMS).eps == 60
    with pytest.raises(UserError, match="unknown norm 'L1'"):
        make_threat("L1", image_size=32)
