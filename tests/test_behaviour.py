"""Real CIFAR-10, a small network: adversarial training is robust where standard training is not.

4,000 training images and 6 epochs, far too little for good numbers and enough to tell the methods from no defense.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

import timm_robust
from timm_robust.data import load_data

pytestmark = pytest.mark.slow

NETWORK = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
METHODS = ("standard", "fgsm-rs", "pgd", "trades", "sat")
TRAIN, TEST, HARD = 4000, 500, 32
"""Images to learn from, to measure on, and to give the strong attacks."""


@pytest.fixture(scope="module")
def images(cifar10):
    """(train, test) as uint8 tensors of an even share of each class, held out before anything is trained."""
    bundle = load_data(str(cifar10), seed=0)

    def evenly(split, n):
        step = len(split) // n  # folders come class by class
        return split.pixels[::step][:n].permute(0, 3, 1, 2), split.labels[::step][:n]

    return evenly(bundle.train, TRAIN), evenly(bundle.test, TEST)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """One run per method, with the same seed, recipe and budget; the last epoch, measured on the test images."""
    folder = tmp_path_factory.mktemp("behaviour")

    def run(method):
        result = timm_robust.train(
            "resnet18",
            method,
            images,
            model_kwargs=NETWORK,
            output=folder / method,
            recipe="default",
            epochs=6,
            batch_size=64,
            lr=0.002,
            # AdamW on images as they are, because 378 steps of SGD on crops would fit none of the methods
            recipe_args={"optimizer": "adamw", "augment": "none", "check_attack": "pgd-2-1", "check_examples": 100},
            # three longer steps in place of ten, for the time
            method_args={"steps": 3, "step_ratio": 0.5} if method in ("pgd", "trades") else {},
            test_attacks=[],
            device="cpu",
            quiet=True,
        )
        # not best/, which for standard training is the epoch that learned least
        last = result.output / "last"
        measured = timm_robust.evaluate(last, images, attacks=["pgd-10-1"], quiet=True)
        clean, robust = measured.clean_accuracy, measured.attacks["pgd-10-1"]["robust_accuracy"]
        seconds = sum(row["seconds"] for row in result.history)
        print(f"{method:<9} clean {clean:.1%}  PGD-10 {robust:.1%}  {seconds:.0f} s")
        return SimpleNamespace(folder=last, clean=clean, robust=robust)

    return {method: run(method) for method in METHODS}


def test_standard_training_is_accurate_and_not_robust(trained):
    standard = trained["standard"]
    assert standard.robust < 0.05
    assert all(standard.clean > run.clean for method, run in trained.items() if method != "standard")


@pytest.mark.parametrize("method", METHODS[1:])
def test_adversarial_training_is_robust(trained, method):
    assert trained[method].robust > trained["standard"].robust + 0.10


@pytest.mark.parametrize("method", METHODS)
def test_clean_accuracy_is_above_chance(trained, method):
    assert trained[method].clean > 0.25  # chance is 0.1


@pytest.mark.parametrize("method", ["standard", "sat"])
def test_stronger_attacks_leave_less(trained, images, method):
    """AutoAttack <= PGD-50-10 <= PGD-10 <= FGSM <= clean on the same images, with room for one lucky image."""
    names = ["fgsm", "pgd-10-1", "pgd-50-10", "autoattack"]
    record = timm_robust.evaluate(trained[method].folder, images, attacks=names, examples=HARD, quiet=True)
    shares = [record.clean_accuracy, *(record.attacks[name]["robust_accuracy"] for name in names)]
    print(method, dict(zip(["clean", *names], shares, strict=True)))
    assert all(weaker >= stronger - 1 / HARD for weaker, stronger in pairwise(shares))
    assert shares[0] >= shares[1] and shares[-1] <= shares[1]
    assert record.attacks["autoattack"]["flags"] == []


def test_sat_is_the_smooth_twin(trained):
    """Same recipe and budget as fgsm-rs; what was trained has no ReLU left."""
    metadata = timm_robust.load(trained["sat"].folder).config
    assert metadata.activation == "silu"
    assert timm_robust.load(trained["fgsm-rs"].folder).config.activation is None
