"""Curves of checkpoints: data that differ, resume after a kill, and mistakes told in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from timm_robust.api.curve import curve
from timm_robust.errors import UserError
from timm_robust.evaluation import curve as curve_module


def test_checkpoints_of_other_data_are_not_mixed(shared_run, tmp_path):
    metadata = json.loads((shared_run / "best/model.json").read_text())
    shutil.copytree(shared_run / "best", tmp_path / "data")
    changed = {**metadata, "data": {**metadata["data"], "name": str(tmp_path)}}
    (tmp_path / "data/model.json").write_text(json.dumps(changed))
    for label in range(10):
        for file in ("train/{}/0.png", "train/{}/1.png", "test/{}/0.png"):
            place = tmp_path / file.format(label)
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(place)
    with pytest.raises(UserError, match="was trained on .*, the first checkpoint on digits: pass data"):
        curve([shared_run, tmp_path / "data"], eps_values=[0], examples=5, quiet=True)
    found = curve([shared_run, tmp_path / "data"], "digits", eps_values=[0], examples=5, quiet=True)
    assert len(found) == 2


def test_a_killed_curve_goes_on(shared_run, monkeypatch):
    settings = {"eps_values": ["0", "2/255", "8/255"], "attack": "pgd-2-1", "examples": 20, "quiet": True}
    (whole,) = curve([shared_run], **settings).values()
    kept = shared_run / "best/curve.unfinished"
    assert not kept.exists()
    run, calls = curve_module.robust_correct_of, []

    def killed(*parts, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*parts, **settings)

    monkeypatch.setattr(curve_module, "robust_correct_of", killed)
    with pytest.raises(KeyboardInterrupt):
        curve([shared_run], **settings)
    with pytest.raises(UserError, match="differs in seed .*pass --restart"):
        curve([shared_run], seed=1, **settings)
    assert len(calls) == 3
    (again,) = curve([shared_run], **settings).values()
    assert again == whole and len(calls) == 4 and not kept.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: curve([run], output="curve.jpx"), "expected a name that ends in .svg"),
        (lambda run: curve([run], output="nowhere/curve.svg"), "the folder of the picture .* does not exist"),
        (lambda run: curve([run], attack="pgdd"), "unknown attack 'pgdd'"),
        (lambda run: curve([run], eps_values=["8"], examples=5), "did you mean 8/255"),
        (lambda run: curve([]), "a curve needs a checkpoint"),
    ],
)
def test_mistakes_of_a_user(shared_run, call, message):
    with pytest.raises(UserError, match=message):
        call(shared_run)
