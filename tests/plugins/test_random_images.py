"""Random real images as a distillation."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.support import distill_digits, patch_records
from timm_robust.data import load_data


def test_random_images_are_whole_and_never_held_out(observer, tmp_path):
    result = distill_digits(observer, tmp_path / "random", method="random", method_args={})
    train = load_data("digits", stream=True).train
    places = {train.name(i): i for i in range(len(train))}
    assert result.manifest["images"] == 30
    for line in patch_records(tmp_path / "random"):
        (patch,) = line["patches"]
        assert patch["box"] == [0, 0, 8, 8] and train.labels[places[patch["source"]]] == line["class"]
        stored = np.asarray(Image.open(tmp_path / "random" / line["file"]))
        np.testing.assert_array_equal(stored, np.asarray(train.images.read(places[patch["source"]])))
