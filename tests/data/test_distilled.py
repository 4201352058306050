"""Distilled data as a data source."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.support import distill_digits
from timm_robust.data import add_extra, load_data
from timm_robust.errors import UserError


def test_validation_and_test_images_are_the_real_ones(distilled):
    real, few = load_data("digits"), load_data(str(distilled))
    assert len(few.train) == 30 and few.image_size == 8 and few.class_names == real.class_names
    assert torch.equal(few.test.pixels, real.test.pixels) and (few.test.labels == real.test.labels).all()
    assert torch.equal(few.val.pixels, real.val.pixels) and (few.val.labels == real.val.labels).all()
    other = load_data(str(distilled), seed=5)  # what is held out is the distillation's, whatever the run's seed
    assert torch.equal(other.val.pixels, real.val.pixels)


def test_as_extra_data(distilled):
    bundle = add_extra(load_data("digits"), str(distilled), 0.3)
    assert len(bundle.extra.split) == 30 and np.bincount(bundle.extra.split.labels).tolist() == [3] * 10


def test_python_objects_can_be_distilled_and_say_that_they_are_not_found_again(observer, few_digits, tmp_path):
    distill_digits(observer, tmp_path / "arrays", data=few_digits, ipc=2, method_args={"pool": 15})
    with pytest.raises(UserError, match="was distilled from Python objects"):
        load_data(str(tmp_path / "arrays"))


def test_a_source_that_moved(distilled, tmp_path):
    moved = tmp_path / "moved"
    (moved / "train").mkdir(parents=True)
    record = json.loads((distilled / "manifest.json").read_text())
    for entry in record["classes"]:
        (moved / "train" / entry["folder"]).symlink_to(distilled / "train" / entry["folder"])
    record["source"]["data"] = str(tmp_path / "gone")
    (moved / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="validation and test images of .* are those of .*gone"):
        load_data(str(moved))


def test_the_manifest_is_the_one_that_the_run_folder_writes():
    """Two rooms, of which the lower must not import the higher."""
    from timm_robust.data.distilled import KIND, MANIFEST
    from timm_robust.runs import folder

    assert (MANIFEST, KIND) == (folder.MANIFEST, folder.DISTILLATION)
