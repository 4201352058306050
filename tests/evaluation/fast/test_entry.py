"""`evaluate --fast`: the entry of the record, going on after a kill, several processes, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import timm_robust
from timm_robust.errors import UserError
from timm_robust.evaluation.fast import apgd, fab, square
from timm_robust.utils import distributed


@pytest.fixture
def checkpoint(train_small):
    return train_small("fgsm-rs", data="digits", epochs=6, recipe_args={"check_attack": "clean"}).output


@pytest.fixture
def short(monkeypatch):
    """The same attacks with fewer iterations."""
    for module, name, value in ((apgd, "STEPS", 12), (fab, "STEPS", 6), (square, "QUERIES", 60)):
        monkeypatch.setattr(module, name, value)


def run(checkpoint, **settings):
    defaults = {"attacks": ["autoattack"], "examples": 20, "eps": "12/255", "fast": True, "quiet": True}
    return timm_robust.evaluate(checkpoint, **{**defaults, **settings})


def test_the_record_says_that_it_is_no_reference(checkpoint, short, tmp_path):
    file = tmp_path / "record.json"
    entry = run(checkpoint, json=file).attacks["autoattack"]
    assert json.loads(file.read_text())["attacks"]["autoattack"] == entry
    assert entry["mode"] == "fast" and entry["implementation"] == "timm-robust fast mode"
    assert list(entry["after"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(entry["after"].values())[-1] == entry["robust_accuracy"] == sum(entry["robust"]) / 20
    assert 0 < entry["robust_accuracy"] < 1, "the case must tell something"
    assert list(tmp_path.glob("record.*")) == [file], "what was kept on the way is gone"


def test_a_killed_run_goes_on(checkpoint, short, tmp_path, monkeypatch):
    whole = run(checkpoint).attacks["autoattack"]["robust"]
    file, kept = tmp_path / "record.json", tmp_path / "record.unfinished"
    monkeypatch.setattr(timm_robust.evaluation.fast.run, "SECONDS_BETWEEN_SAVES", 0.0)
    step, left = fab.FAB.step, [8]

    def mortal(attack, state):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        step(attack, state)

    monkeypatch.setattr(fab.FAB, "step", mortal)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, json=file)
    running = json.loads(kept.read_text())["running"]["autoattack"]
    assert running["attack"] == "fab-t" and running["finished"] == ["apgd-ce", "apgd-t"]
    with pytest.raises(UserError, match=r"unfinished evaluation that differs in mode \(fast, fp32, now reference\)"):
        run(checkpoint, json=file, fast=False)
    assert run(checkpoint, json=file).attacks["autoattack"]["robust"] == whole
    assert not kept.exists()


def test_two_processes_share_the_images(checkpoint, tmp_path):
    code = (
        "from timm_robust.evaluation.fast import apgd, fab, square; apgd.STEPS, fab.STEPS, square.QUERIES = 12, 6, 60;"
        "from timm_robust.cli import main; main()"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    line = ["evaluate", str(checkpoint), "--attack", "autoattack", "--examples", "21", "--eps", "12/255", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    records = []
    for name, start in (
        ("one.json", [sys.executable]),
        ("two.json", [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
                      "--rdzv-endpoint=localhost:0"]),
    ):  # fmt: skip
        command = [*start, str(script), *line, "--json", str(tmp_path / name), "--fast"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("autoattack") == 1, "one process speaks"
        records.append(json.loads((tmp_path / name).read_text())["attacks"]["autoattack"])
    assert not list(tmp_path.glob("*.unfinished*"))
    assert records[0]["robust"] == records[1]["robust"]
    assert 0 < sum(records[0]["robust"]) < 21, "the case must tell something"
    assert (records[0]["processes"], records[1]["processes"]) == (1, 2)
    assert records[0]["after"] == pytest.approx(records[1]["after"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fast": False, "precision": "bf16"}, "precision and compile are for the fast mode"),
        ({"precision": "fp8"}, "unknown precision of the fast mode 'fp8'"),
        ({"norm": "L1"}, "the fast mode knows Linf and L2, not L1"),
        ({"attacks": ["autoattack-rand"]}, "the fast mode has no version rand"),
    ],
)
def test_mistakes(checkpoint, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        run(checkpoint, **settings)


def test_the_reference_is_not_measured_twice_over(checkpoint, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="2 processes would all measure the same"):
        run(checkpoint, fast=False)
