"""`evaluate`: its JSON record, a full disk, a process without plugins, and mistakes."""

from __future__ import annotations

import json
import sys

import pytest

import timm_robust
from timm_robust.errors import UserError


def test_json_of_the_design(train_small, tmp_path, few_digits):
    output = train_small(epochs=1).output
    file = tmp_path / "record.json"
    timm_robust.evaluate(
        output, few_digits, attacks=["fgsm", "pgd-2-1", "autoattack"], examples=12, json=file, quiet=True
    )
    record = json.loads(file.read_text())
    assert set(record) >= {
        "checkpoint",
        "data",
        "n_examples",
        "threat",
        "clean_accuracy",
        "seed",
        "versions",
        "hardware",
        "attacks",
    }
    assert record["threat"] == {"norm": "Linf", "eps": pytest.approx(8 / 255), "eps_text": "8/255"}
    assert record["n_examples"] == 12 and 0 <= record["clean_accuracy"] <= 1
    assert list(record["attacks"]) == ["fgsm", "pgd-2-1", "autoattack"]
    for entry in record["attacks"].values():
        assert len(entry["robust"]) == 12 and entry["robust_accuracy"] == pytest.approx(sum(entry["robust"]) / 12)
    assert record["attacks"]["autoattack"]["implementation"].startswith(("pyautoattack", "autoattack"))
    assert record["attacks"]["autoattack"]["flags"] == []


def test_a_full_disk_does_not_lose_what_was_measured(train_small, few_digits, tmp_path, monkeypatch, capfd):
    output = train_small(epochs=1).output

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("timm_robust.utils.files.write_json", full)
    result = timm_robust.evaluate(output, few_digits, attacks=["fgsm"], json=tmp_path / "record.json", quiet=True)
    assert len(result.attacks["fgsm"]["robust"]) == 100
    assert "could not be written" in capfd.readouterr().err
    assert list(tmp_path.glob("record.*")) == [tmp_path / "record.unfinished"], "what is kept goes only with a record"


def test_evaluation_leaves_plugins_alone(train_small, tmp_path):
    """A checkpoint is measured in a process that may load no plugin at all."""
    import os
    import subprocess

    output = train_small("sat", epochs=1).output
    code = (
        f"import timm_robust, torch, sys; m = timm_robust.load({str(output)!r}); m(torch.rand(2, 3, 8, 8));"
        "assert not [name for name in sys.modules if name.startswith('timm_robust_plugins')]"
    )
    environment = {**os.environ, "TIMM_ROBUST_LOAD_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"attacks": ["pgdd"]}, "unknown attack 'pgdd': expected clean, fgsm, autoattack or pgd-STEPS-RESTARTS"),
        ({"attacks": ["clean"], "examples": 101}, "examples is 101, the test split of .* has only 100"),
        ({"eps": "8"}, "did you mean 8/255"),
        ({"examples": 0}, "examples is 0: expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ({"attacks": ["autoattack-rand"], "fast": True}, "the fast mode has no version rand"),
        ({"json": "nowhere/record.json"}, "the folder of the record 'nowhere/record.json' does not exist"),
    ],
)
def test_mistakes(train_small, few_digits, call, message):
    output = train_small(epochs=1).output
    with pytest.raises(UserError, match=message):
        timm_robust.evaluate(output, few_digits, quiet=True, **call)
