"""The observer: whether it knows the classes of the data in their order."""

from __future__ import annotations

import numpy as np
import pytest

from timm_robust.data import load_data
from timm_robust.distillation.observer import open_observer, probes, require_order
from timm_robust.errors import UserError
from timm_robust.models.class_order import class_columns
from timm_robust.models.factory import build_model

# the observer


def predicted(targets, accuracy, seed=0):
    random = np.random.default_rng(seed)
    return np.where(
        random.random(len(targets)) < accuracy, targets, random.integers(0, targets.max() + 1, len(targets))
    )


@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.95])
def test_an_observer_that_knows_the_classes_is_taken(accuracy):
    for classes, each in ((10, 20), (100, 20), (1000, 4), (2, 20)):
        targets = np.random.default_rng(1).permutation(np.repeat(np.arange(classes), each))
        found = predicted(targets, max(accuracy, 0.6) if classes == 2 else accuracy)
        names = [f"c{number}" for number in range(classes)]
        assert require_order(found, targets, names, owner="x") == pytest.approx(np.mean(found == targets))


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_another_order_of_the_classes_is_refused(classes):
    targets = np.repeat(np.arange(classes), 4 if classes == 1000 else 20)
    names = [f"c{number}" for number in range(classes)]
    with pytest.raises(UserError, match=r"x has its classes in another order .* right on \d\.\d% of"):
        require_order((predicted(targets, 0.8) + 1) % classes, targets, names, owner="x")


def test_two_classes_that_changed_places_are_refused():
    targets = np.repeat(np.arange(10), 20)
    swapped = np.array([0, 1, 2, 5, 4, 3, 6, 7, 8, 9])
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with pytest.raises(UserError, match=r"what it calls '(cat|dog)' is mostly '(cat|dog)'"):
        require_order(swapped[predicted(targets, 0.95)], targets, names, owner="x")


def test_chance_is_refused():
    targets = np.repeat(np.arange(10), 20)
    with pytest.raises(UserError, match="cannot be told from chance"):
        require_order(predicted(targets, 0.0, seed=3), targets, [str(n) for n in range(10)], owner="x")


def test_probes_have_images_of_every_class():
    val = load_data("digits", stream=True).val
    chosen = probes(val)
    counts = np.bincount(chosen.labels)
    assert len(counts) == 10 and counts.min() >= 4 and counts.max() <= 20
    assert [chosen.name(i) for i in range(3)] == [val.name(i) for i in range(len(val))][:3]


# distilling and learning, for real


def test_a_timm_name_is_an_observer_of_imagenet(monkeypatch):
    """Its classes have WordNet numbers, so that folders with some of them find theirs."""
    monkeypatch.setattr(
        "timm_robust.distillation.observer.build_model", lambda *a, **k: build_model(*a, **{**k, "pretrained": False})
    )
    observer = open_observer("resnet18")
    network, names = observer.network, observer.metadata["data"]["class_names"]
    assert network.config.num_classes == 1000 and network.config.image_size == 224 and not network.training
    assert class_columns(names, ["n01440764", "n02102040"], 1000, owner="x") == [0, 217]  # of ImageNette
    assert class_columns(names, names, 1000, owner="x") is None
