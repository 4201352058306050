"""`train`: the files of a run, and mistakes told before anything is trained."""

from __future__ import annotations

import json

import pytest

from timm_robust.errors import UserError


def test_metrics_and_manifest(train_small):
    output = train_small("trades", epochs=2, method_args={"beta": "3", "steps": 2}).output
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    for key in ("train_loss", "train_clean_loss", "train_accuracy", "val_clean", "val_robust", "lr", "seconds", "best"):
        assert key in rows[0]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["method_args"] == {"beta": 3.0, "steps": 2} | {
        k: v for k, v in manifest["method_args"].items() if k not in ("beta", "steps")
    }
    for key in ("recipe", "threat", "versions", "plugin", "hardware", "config_hash", "model", "seed"):
        assert manifest[key] is not None
    assert manifest["plugin"]["distribution"] == "timm-robust"
    assert not list(output.rglob(".*")), "no temporary files are left"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"method": "tradez"}, "unknown method 'tradez': did you mean trades"),
        ({"method_args": {"betta": 1}, "method": "trades"}, "'betta': did you mean beta"),
        ({"recipe": "defaul"}, "unknown recipe 'defaul': did you mean default"),
        ({"recipe_args": {"epoch": 1}}, "unknown recipe setting 'epoch': did you mean epochs"),
        ({"recipe_args": {"optimizer": "sgdd"}}, "unknown optimizer 'sgdd': did you mean sgd"),
        ({"recipe_args": {"schedule": "multistep", "milestones": "0.9,0.5"}}, "expected increasing shares"),
        ({"recipe_args": {"check_attack": "pdg"}}, "unknown attack 'pdg'"),
        ({"epochs": 0}, "'epochs' is 0: expected at least 1"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"model": "resnet19", "model_kwargs": None}, "unknown model 'resnet19': did you mean resnet18|resnet1"),
        ({"test_attacks": ["agd"]}, "unknown attack 'agd'"),
        ({"test_examples": 101}, "the test split has only 100 images"),
        ({"activation": "sillu"}, "unknown activation 'sillu': did you mean silu"),
    ],
)
def test_mistakes_are_told_before_training(train_small, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train_small(**settings)
    assert not (tmp_path / "run/metrics.jsonl").exists()
    # and the corrected call is not refused because of what the wrong one left behind
    train_small(epochs=1)


def test_what_a_method_refuses_leaves_the_folder_free(train_small, tmp_path):
    with pytest.raises(UserError, match="max_step"):
        train_small("atas", method_args={"max_step": 2})
    assert not (tmp_path / "run").exists()
    assert train_small("atas", epochs=1).output == tmp_path / "run"
