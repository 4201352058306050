"""Small real things to test with: a few digits, a small ResNet."""

from __future__ import annotations

import importlib
import os
import zipfile
from functools import partial
from pathlib import Path

# Before torch is imported: threads only wait for each other on networks this small, badly so on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

import timm_robust
from tests.support import SCRIPTS, SMALL, corrupted, distill_digits
from timm_robust.data import load_data
from timm_robust.evaluation.corruptions import CORRUPTIONS
from timm_robust.models.factory import build_model
from timm_robust.models.pixel_model import PixelModel


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
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real CIFAR-10 as an image folder: all of it, or a random quarter of training where it has to be unpacked."""
    if folder := os.environ.get("TIMM_ROBUST_CIFAR10"):
        return Path(folder)
    archives = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
    parts = [archives / "train-0.zip", archives / "test.zip"]
    if not all(part.is_file() for part in parts):
        pytest.skip("no CIFAR-10: set TIMM_ROBUST_CIFAR10 to an image folder with train/ and test/")
    root = tmp_path_factory.mktemp("cifar10")
    for part in parts:
        with zipfile.ZipFile(part) as archive:
            archive.extractall(root)
    return root


@pytest.fixture(scope="session")
def overfitted(tmp_path_factory):
    """Settings under which a small network memorises: 100 digits, 60 % of the labels noise, 600 digits to validate."""
    from timm_robust.data import as_tensors

    bundle = load_data("digits")
    images, labels = as_tensors(bundle.train, 700)
    data = {"train": (images[:100], labels[:100]), "val": (images[100:], labels[100:]), "test": as_tensors(bundle.test)}
    settings = {
        "model": "resnet18",
        "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 32, 32, 64]},
        "method": "pgd",
        "method_args": {"steps": 3},
        "data": data,
        "recipe": "digits",
        "epochs": 40,
        "batch_size": 20,
        "lr": 0.005,
        "output": tmp_path_factory.mktemp("overfitted") / "run",
        "test_attacks": [],
        "quiet": True,
        "recipe_args": {
            "augment": "none",
            "schedule": "constant",
            "weight_decay": 0,
            "check_attack": "pgd-2-1",
            "label_noise": 0.6,
            "diagnose": 100,
            "stop_on_overfitting": 4,
        },
    }
    return settings, timm_robust.train(**settings)


@pytest.fixture
def cifar_c(tmp_path, few_digits) -> Path:
    """15 corruptions of 20 digits in the format of CIFAR-10-C."""
    images, targets = few_digits[1][0][:20], few_digits[1][1][:20]
    folder = tmp_path / "C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(targets.numpy(), 5).astype(np.uint8))
    for number, name in enumerate(CORRUPTIONS):
        np.save(folder / f"{name}.npy", np.concatenate([corrupted(images, s, number) for s in range(1, 6)]))
    return folder


@pytest.fixture(scope="session")
def observer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rded") / "observer"
    settings = {"lr": 0.01, "epochs": 8, "recipe_args": {"check_attack": "clean"}, "test_attacks": [], "quiet": True}
    result = timm_robust.train("resnet18", "standard", "digits", model_kwargs=SMALL, output=folder, **settings)
    assert max(row["val_clean"] for row in result.history) > 0.6
    return folder


@pytest.fixture(scope="session")
def distilled(observer) -> Path:
    """Three stitched images for each digit."""
    folder = observer.parent / "small"
    result = distill_digits(observer, folder)
    assert result.output == folder and "30 images of 8 pixels, 3 for each of 10 classes" in repr(result)
    return folder
