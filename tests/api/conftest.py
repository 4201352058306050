"""A small run that several tests measure."""

from __future__ import annotations

from pathlib import Path

import pytest

import timm_robust


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    timm_robust.train(
        model="resnet18", method="fgsm-rs", data="digits", epochs=1, output=output, test_attacks=[], quiet=True,
        model_kwargs={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        recipe_args={"check_attack": "pgd-2-1"},
    )  # fmt: skip
    return output
