"""Data and class order of an evaluation, for folders with other images than the training's."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from PIL import Image

import timm_robust
from timm_robust.api.inputs import load_eval_inputs
from timm_robust.data import as_tensors, load_data
from timm_robust.errors import UserError


def test_a_folder_with_test_images_only_will_do(shared_run, tmp_path):
    for label in range(10):
        place = tmp_path / f"test/{label}/0.png"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the classes are those of the training
        assert timm_robust.evaluate(shared_run, tmp_path, attacks=["clean"], quiet=True).n_examples == 10
    with pytest.raises(UserError, match="has no train/ inside"):
        timm_robust.train("resnet18", "pgd", tmp_path)


@pytest.fixture
def named(shared_run, tmp_path):
    """The trained network, as if its classes had been called a to j."""
    shutil.copytree(shared_run / "best", tmp_path / "named")
    metadata = json.loads((tmp_path / "named/model.json").read_text())
    metadata["data"]["class_names"] = [*"abcdefghij"]
    (tmp_path / "named/model.json").write_text(json.dumps(metadata))
    return tmp_path / "named"


def test_classes_of_another_name_are_refused(named, tmp_path):
    for label in "abcdefghji":
        place = tmp_path / f"test/{'k' if label == 'j' else label}/0.png"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place)
    sentence = (
        "named has 'j' where data .* has 'k', and 0 more of 10 classes differ: pass the data .* or give the class"
    )
    with pytest.raises(UserError, match=sentence):
        timm_robust.evaluate(named, tmp_path, attacks=["clean"], quiet=True)
    (tmp_path / "test/k").rename(tmp_path / "test/j")
    assert timm_robust.evaluate(named, tmp_path, attacks=["clean"], quiet=True).n_examples == 10


def test_classes_without_names_are_taken_by_number(shared_run, named, few_digits):
    """Arrays have none, nor has a module."""
    labels = few_digits[1][1]
    expected = load_eval_inputs(shared_run, few_digits).targets.tolist()
    assert sorted(expected) == sorted(labels.tolist())
    assert load_eval_inputs(named, few_digits).targets.tolist() == expected
    assert load_eval_inputs(timm_robust.load(named), few_digits).targets.tolist() == expected


def test_a_part_of_the_classes_is_matched_by_name(shared_run, tmp_path):
    images, labels = as_tensors(load_data("digits").test, 60)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        if label in (3, 8):
            place = tmp_path / f"test/{label}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(place)
    inputs = load_eval_inputs(shared_run, tmp_path)
    assert set(inputs.targets.tolist()) == {3, 8}
    chosen = (labels == 3) | (labels == 8)
    with torch.no_grad():
        right = timm_robust.load(shared_run)(images[chosen]).argmax(1) == labels[chosen]
    result = timm_robust.evaluate(shared_run, tmp_path, attacks=["clean"], quiet=True)
    assert result.clean_accuracy == pytest.approx(right.double().mean().item())
