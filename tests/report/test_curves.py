"""The picture of a comparison."""

from __future__ import annotations

import pytest

from tests.support import finished_run
from timm_robust.report.curves import curve, draw, first_collapse, spread_out


def test_the_picture(tmp_path):
    seeds = [finished_run("fgsm", seed, [0.1 * seed, 0.4, 0.0], collapse=4 - seed).history for seed in (1, 2)]
    assert curve([seeds[0], seeds[1][:2]]) == (
        [1, 2, 3],
        [pytest.approx(0.15), 0.4, 0.0],
        [0.1, 0.4, 0.0],
        [0.2, 0.4, 0.0],
    )
    assert [first_collapse(run) for run in (*seeds, seeds[0][:1])] == [3, 2, None]
    file = tmp_path / "many.svg"
    draw({f"method-{i}": seeds for i in range(16)}, [file], title="many", notes=["one", "two"])
    text = file.read_text()
    assert all(f"method-{i} " in text for i in range(16)) and "catastrophic overfitting" in text
    draw({"one": [seeds[0][:1]]}, [tmp_path / "one.png"], title="one epoch")


def test_names_move_apart_as_little_as_possible():
    assert spread_out([1, 5, 9], 2, 10) == [1, 5, 9]
    assert spread_out([5, 5, 9], 2, 10) == [4, 6, 9]
    assert spread_out([0, 0, 10], 2, 10) == [0, 2, 10]
    assert spread_out([10, 10, 10], 2, 10) == [6, 8, 10]
    assert spread_out([], 2, 10) == []
