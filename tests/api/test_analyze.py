"""`curve`, `masking` and `transfer` on checkpoints: resumed, refused, and told in one sentence."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from timm_robust.api import analyze as measuring
from timm_robust.errors import UserError
from timm_robust.evaluation import curve as curve_module


def test_checkpoints_of_other_data_are_not_mixed(shared_run, tmp_path):
    import shutil

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
        measuring.curve([shared_run, tmp_path / "data"], eps_values=[0], n_examples=5, quiet=True)
    found = measuring.curve([shared_run, tmp_path / "data"], "digits", eps_values=[0], n_examples=5, quiet=True)
    assert len(found) == 2


def test_sources_of_a_transfer_are_matched_by_name(shared_run, tmp_path):
    """One network under other names: in another order, in none, and as others."""
    import shutil

    from safetensors.torch import load_file, save_file

    metadata, letters = json.loads((shared_run / "best/model.json").read_text()), [*"abcdefghij"]
    names = {"target": letters, "none": [str(n) for n in range(10)], "others": [*letters[:9], "k"]}
    for name, its in {**names, "turned": letters[::-1]}.items():
        shutil.copytree(shared_run / "best", tmp_path / name)
        changed = {**metadata, "data": {**metadata["data"], "class_names": its}}
        (tmp_path / name / "model.json").write_text(json.dumps(changed))
    weights = load_file(tmp_path / "turned/model.safetensors")
    for key in ("fc.weight", "fc.bias"):
        weights[key] = weights[key].flip(0).contiguous()
    save_file(weights, tmp_path / "turned/model.safetensors")
    settings = {"attack": "pgd-5-1", "n_examples": 40, "quiet": True}
    target = tmp_path / "target"
    for same in ("none", "turned"):
        found = measuring.transfer(target, [target, tmp_path / same], "digits", **settings)
        own, other = found.accuracies.values()
        assert own == other < sum(found.clean) / 40
    with pytest.raises(UserError, match="source '.*others' has 'k' where target '.*target' has 'j', and 0 more of 10"):
        measuring.transfer(target, [tmp_path / "others"], "digits", **settings)


def test_a_killed_curve_goes_on(shared_run, monkeypatch):
    settings = {"eps_values": ["0", "2/255", "8/255"], "attack": "pgd-2-1", "n_examples": 20, "quiet": True}
    (whole,) = measuring.curve([shared_run], **settings).values()
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
        measuring.curve([shared_run], **settings)
    with pytest.raises(UserError, match="differs in seed .*pass --restart"):
        measuring.curve([shared_run], seed=1, **settings)
    assert len(calls) == 3
    (again,) = measuring.curve([shared_run], **settings).values()
    assert again == whole and len(calls) == 4 and not kept.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: measuring.curve([run], out="curve.jpx"), "expected a name that ends in .svg"),
        (lambda run: measuring.curve([run], out="nowhere/curve.svg"), "the folder of the picture .* does not exist"),
        (lambda run: measuring.curve([run], attack="pgdd"), "unknown attack 'pgdd'"),
        (lambda run: measuring.curve([run], eps_values=["8"], n_examples=5), "did you mean 8/255"),
        (lambda run: measuring.curve([]), "a curve needs a checkpoint"),
        (lambda run: measuring.masking(run, json="nowhere/m.json"), "the folder of the record"),
        (lambda run: measuring.masking(run, draws=0), "draws is 0: expected at least 1"),
        (lambda run: measuring.masking(run, n_examples=999), "n_examples is 999, the test split of digits has only"),
        (lambda run: measuring.transfer(run, ["nowhere"], n_examples=5), "'nowhere' does not exist"),
    ],
)
def test_mistakes_of_a_user(shared_run, call, message):
    run = shared_run
    with pytest.raises(UserError, match=message):
        call(run)
