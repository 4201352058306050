"""Teachers: trained once, kept frozen, used again, and resumed after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from timm_robust_plugins.hat.hat import HAT
from timm_robust_plugins.kd_swa.kd_swa import KDSWA

from tests.support import Killed, equal, weights
from timm_robust.api.teachers import _columns
from timm_robust.data import as_tensors, load_data
from timm_robust.errors import UserError
from timm_robust.training.engine import Engine


@pytest.mark.parametrize(
    ("method", "cls", "made_by"),
    [
        ("hat", HAT, {"helper": "standard"}),
        ("kd-swa", KDSWA, {"natural_teacher": "standard", "robust_teacher": "pgd"}),
    ],
)
def test_teachers_are_trained_kept_frozen_and_used_again(train_small, monkeypatch, method, cls, made_by):
    runs, setup = [], cls.setup

    def watched(self, run):
        runs.append(run)
        setup(self, run)

    monkeypatch.setattr(cls, "setup", watched)
    first = train_small(method)
    assert first.history[-1]["train_loss"] < first.history[0]["train_loss"]
    (run,) = runs
    assert set(run.teachers) == set(made_by)
    for option, made in made_by.items():
        folder = first.output / option
        assert f'"method": "{made}"' in (folder / "best/model.json").read_text()
        teacher = run.teachers[option]
        assert not any(module.training for module in teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert equal(teacher.network.model.state_dict(), weights(folder / "best", "")), "nothing of it has moved"

    given = {option: str(first.output / option) for option in made_by}
    again = train_small(method, output="again", method_args=given)
    assert equal(weights(first.output / "last", ""), weights(again.output / "last", ""))
    assert not any((again.output / option).exists() for option in made_by)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_killed_while_its_teacher_is_trained_goes_on(train_small, monkeypatch, epoch):
    whole = train_small("hat", "whole")
    original = Engine._train_epoch

    def killed(self):
        if self.config.metadata["method"] == "standard" and self.epoch == epoch:
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed)
    with pytest.raises(Killed):
        train_small("hat", "killed")
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = train_small("hat", "killed", resume=True)
    assert equal(weights(whole.output / "last", ""), weights(resumed.output / "last", ""))


def test_a_teacher_of_classes_with_other_names_is_refused(train_small, tmp_path):
    """By number every label could be wrong, silently."""
    helper = train_small("standard").output / "best"
    metadata = json.loads((helper / "model.json").read_text())
    metadata["data"]["class_names"] = [*"abcdefghij"]
    (helper / "model.json").write_text(json.dumps(metadata))
    for number, name in enumerate("abcdefghik"):
        for i, split in enumerate(["train"] * 12 + ["test"]):
            place = tmp_path / f"data/{split}/{name}/{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * number,) * 3).save(place)
    settings = {"data": tmp_path / "data", "method_args": {"helper": str(helper)}}
    with pytest.raises(UserError, match="teacher '.*best' has 'j' where this data has 'k', and 0 more of 10 classes"):
        train_small("hat", "other", **settings)
    assert len(train_small("hat", "arrays", method_args={"helper": str(helper)}).history) == 2, "by number"


def test_the_observer_of_distilled_data_keeps_the_order_that_was_checked(distilled, tmp_path):
    """Older versions took observers of other names by number, after trying them on images."""
    shutil.copytree(distilled, tmp_path / "small")
    card = tmp_path / "small/observer/model.json"
    metadata = json.loads(card.read_text())
    metadata["data"]["class_names"] = [*"abcdefghij"]
    card.write_text(json.dumps(metadata))
    manifest = json.loads((tmp_path / "small/manifest.json").read_text())
    for entry in manifest["classes"]:
        entry["name"] = f"digit {entry['name']}"
    manifest["source"]["data"] = str(tmp_path / "real.npz")
    bundle = load_data("digits")
    held = {split: as_tensors(getattr(bundle, split)) for split in ("val", "test")}
    arrays = {
        f"{split}_{what}": part.numpy()
        for split, pair in held.items()
        for what, part in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "real.npz", train_images=arrays["val_images"], train_labels=arrays["val_labels"], **arrays)
    (tmp_path / "small/manifest.json").write_text(json.dumps(manifest))
    data = load_data(str(tmp_path / "small"))
    assert data.distilled.observer_classes == list(range(10)) and data.class_names[3] == "digit 3"
    assert _columns(data.distilled.teachers["observer"], data) is None
    with pytest.raises(UserError, match="teacher .* has 'a' where this data has 'digit 0', and 9 more"):
        _columns(str(data.distilled.teachers["observer"]), replace(data, distilled=None))
