"""Small real things to test with: a few digits, a small ResNet."""

from __future__ import annotations

import importlib
import os
import zipfile
from functools import partial
from pathlib import Path

# Before torch is imported: threads only wait for each other on networks this small, badly so on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from timm_robust.models.factory import build_model
from timm_robust.models.pixel_model import PixelModel

SCRIPTS = Path(__file__).resolve().parents[1] / "examples/cifar10"

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


@pytest.fixture(scope="session")
def few_digits():
    """300 training and 100 test digits as tensors, for `data=`."""
    from timm_robust.data import as_tensors, load_data

    bundle = load_data("digits")
    train, test = as_tensors(bundle.train, 300), as_tensors(bundle.test, 100)
    return train, test


@pytest.fixture
def small_model() -> PixelModel:
    """A small ResNet on 8-pixel images with ten classes, freshly and equally initialised each time."""
    torch.manual_seed(0)
    return build_model(
        "resnet18", num_classes=10, image_size=8, model_kwargs=SMALL, data_mean=[0.3] * 3, data_std=[0.37] * 3
    )


@pytest.fixture
def train_small(tmp_path, few_digits):
    """`timm_robust.train` on the small things: two epochs, no final evaluation."""
    import timm_robust

    def run(method="fgsm-rs", output="run", **settings):
        defaults = {
            "model": "resnet18",
            "model_kwargs": SMALL,
            "data": few_digits,
            "epochs": 2,
            "batch_size": 50,
            "recipe": "digits",
            "test_attacks": [],
            "quiet": True,
            "recipe_args": {"check_attack": "pgd-2-1"},
        }
        return timm_robust.train(method=method, output=tmp_path / output, **{**defaults, **settings})

    return run


@pytest.fixture(scope="session")
def subset(cifar10):
    """`subset(train=..., val=..., test=...)`: so many images of each split of CIFAR-10, as the scripts take them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return partial(importlib.import_module("subset").subset, str(cifar10))


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory) -> Path:
    """The real CIFAR-10 as an image folder; skips where it is not."""
    given = os.environ.get("TIMM_ROBUST_CIFAR10")
    if given:
        return Path(given)
    packed = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
    if not packed.is_dir():
        pytest.skip("needs CIFAR-10 as an image folder: set TIMM_ROBUST_CIFAR10 to it")
    folder = tmp_path_factory.mktemp("cifar10")
    for part in ("train-0", "test"):
        with zipfile.ZipFile(packed / f"{part}.zip") as archive:
            archive.extractall(folder)
    return folder
