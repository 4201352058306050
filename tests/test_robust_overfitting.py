"""Real CIFAR-10, few images: PGD training overfits robustly, refined labels and ensembled predictions do not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).resolve().parents[1] / "examples/cifar10/overfitting.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("overfitting", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images(script, cifar10):
    return script.images(str(cifar10))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gap_between_best_and_last(script, images, tmp_path, seed):
    gaps = {method: script.run(method, seed, images, tmp_path)["gap"] for method in script.METHODS}
    print(seed, gaps)
    assert gaps["pgd"] >= 0.04
    assert gaps["sglr"] <= 0.015
    assert gaps["te"] <= 0.015
