"""Real CIFAR-10, few images: PGD training overfits robustly, refined labels and ensembled predictions do not."""

from __future__ import annotations

import importlib

import pytest

from tests.support import SCRIPTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return importlib.import_module("overfitting")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gap_between_best_and_last(script, subset, tmp_path, seed):
    images = subset(**script.IMAGES)
    gaps = {method: script.run(method, seed, images, tmp_path)["gap"] for method in script.METHODS}
    print(seed, gaps)
    assert gaps["pgd"] >= 0.04
    assert gaps["sglr"] <= 0.015
    assert gaps["te"] <= 0.015
