"""What version 361d98b wrote is read, resumed and measured by this one. Only what users call is used here.

The samples are in samples/v361d98b; its README.txt says how they were made.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import timm_robust

SAMPLES = Path(__file__).parent / "samples" / "v361d98b"


@pytest.fixture
def samples(tmp_path, monkeypatch) -> Path:
    """A copy to write into, which is the working directory: all paths in the samples are relative."""
    shutil.copytree(SAMPLES, tmp_path / "samples")
    monkeypatch.chdir(tmp_path / "samples")
    return tmp_path / "samples"


@pytest.fixture
def one_thread():
    """Sums in another order give other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def command(*words: str, succeed: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "timm_robust", *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "COLUMNS": "200"},  # tables fold names otherwise
    )
    assert not succeed or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def pixels(size: int) -> torch.Tensor:
    """The four images that the stored logits are of."""
    return torch.linspace(0, 1, 4 * 3 * size * size).reshape(4, 3, size, size)


def hashes(folder: Path) -> dict[str, str]:
    found = {}
    for key, value in sorted(load_file(folder / "model.safetensors").items()):
        head = f"{key} {value.dtype} {tuple(value.shape)}".encode()
        found[key] = hashlib.sha256(head + value.contiguous().numpy().tobytes()).hexdigest()
    return found


def require_as_uninterrupted(output: Path) -> None:
    """A resumed run ended as the uninterrupted one did at 361d98b, in every bit on the same machine and packages."""
    expected, manifest = read(SAMPLES / "expected.json")["run"], read(output / "manifest.json")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, before in zip(rows, expected["metrics"], strict=True):
        for name, value in before.items():
            tolerance = 0.05 if name.startswith(("val_", "train_accuracy")) else 0.01
            assert row[name] == pytest.approx(value, rel=0.01, abs=tolerance), name
    for name in ("recipe", "model", "method_args", "modifiers", "threat", "data", "seed"):
        assert manifest[name] == expected["manifest"][name], name
    was = expected["manifest"]
    packages = ("torch", "timm", "torchattacks", "numpy")
    if manifest["hardware"] == was["hardware"] and all(
        manifest["versions"][name] == was["versions"][name] for name in packages
    ):
        assert hashes(output / "last") == expected["last"]
        assert hashes(output / "best") == expected["best"]


# networks -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_the_same_logits(samples):
    model = timm_robust.load("checkpoint")
    with torch.no_grad():
        logits = model(pixels(8))
    torch.testing.assert_close(logits, torch.tensor(read("checkpoint_logits.json")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["run", "run/last", "cifar", "distilled/observer", "run/best/model.safetensors"])
def test_every_kind_of_checkpoint_loads(samples, path):
    model = timm_robust.load(path)
    assert model(torch.rand(2, 3, 32, 32) if path == "cifar" else torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_a_submission_needs_nothing_that_has_moved(samples, monkeypatch):
    """Its file is published: it imports this package by the names of the day it was written."""
    monkeypatch.syspath_prepend(str(samples / "submission"))
    importlib.import_module("doe2026draft")
    model = timm.create_model("doe2026draft_cifar10_linf", pretrained=True, checkpoint_path="").eval()
    expected = torch.tensor(read("submission_logits.json"))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels(32)), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(timm_robust.load("cifar")(pixels(32)), expected, rtol=1e-4, atol=1e-5)


# runs ---------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_weights(samples, one_thread):
    arguments = read("expected.json")["run"]["arguments"]
    result = timm_robust.train(output="run", **arguments, device="cpu", resume=True, quiet=True)
    assert len(result.history) == 2
    require_as_uninterrupted(samples / "run")


def test_a_killed_run_goes_on_by_the_command(samples, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "resuming after epoch 1 of 2" in command("train", "--resume", "--output", "run")
    require_as_uninterrupted(samples / "run")


def test_a_killed_run_is_not_resumed_with_other_settings(samples):
    arguments = read("expected.json")["run"]["arguments"]
    with pytest.raises(timm_robust.UserError, match="started with"):
        timm_robust.train(output="run", **{**arguments, "seed": 4}, device="cpu", resume=True, quiet=True)


def test_a_report_of_a_run(samples):
    page = timm_robust.make_report(["run"], "report.html")
    assert "run" in Path(page).read_text()


# distilled data -----------------------------------------------------------------------------------------------------


def test_distilled_images_are_trained_on(samples):
    """With the observer beside them as teacher, and validation images that were held out when they were distilled."""
    result = timm_robust.train(
        "vit_tiny_patch16_224",
        "rded-student",
        "distilled",
        model_kwargs={"embed_dim": 16, "depth": 1, "num_heads": 2},
        recipe="rded-student",
        epochs=1,
        output="student",
        test_attacks=[],
        device="cpu",
        quiet=True,
    )
    assert len(result.history) == 1
    assert read("student/manifest.json")["data"]["class_names"] == [str(number) for number in range(10)]


def test_a_finished_distillation_is_taken_as_it_is(samples):
    before = {path: path.read_bytes() for path in Path("distilled").rglob("*") if path.is_file()}
    command("distill", "--resume", "--output", "distilled")
    assert before == {path: path.read_bytes() for path in Path("distilled").rglob("*") if path.is_file()}


# records ------------------------------------------------------------------------------------------------------------


def test_records_are_compared_image_by_image(samples):
    """With one another, and with one that this version writes."""
    told = command("paired", "record.json", "record_other.json")
    assert "pgd-10-1" in told and "autoattack" in told
    command("evaluate", "checkpoint", "--attack", "pgd-10-1", "--n-examples", "24", "--json", "new.json")
    old, new = read("record.json"), read("new.json")
    assert new["weights"] == old["weights"]
    before, now = (one["attacks"]["pgd-10-1"]["robust"] for one in (old, new))
    assert sum(a != b for a, b in zip(before, now, strict=True)) <= 1, "another machine may round otherwise"
    assert "pgd-10-1" in command("paired", "record.json", "new.json")


def test_a_record_goes_into_a_submission(samples):
    words = ("--dataset", "cifar10", "--record", "submit.json", "--id", "Doe2026Again", "--draft", "--out", "again")
    assert "Doe2026Again" in command("submit", "cifar", *words)
    assert read("again/evaluation.json")["attacks"]["autoattack"] == read("submit.json")["attacks"]["autoattack"]


def test_a_record_of_the_fast_mode_is_still_refused(samples):
    words = ("--record", "record_fast.json", "--id", "Doe2026Again", "--draft", "--out", "again")
    assert "not made in reference mode" in command("submit", "cifar", *words, succeed=False)


def test_a_comparison_is_resumed(samples):
    """What is finished is taken as it is."""
    before = read("compare/comparison.json")
    told = command("compare", "--resume", "--output", "compare")
    assert told.count("finished before, taken as it is") == 2
    after = read("compare/comparison.json")
    assert [row["method"] for row in after["runs"]] == [row["method"] for row in before["runs"]] == ["fgsm", "n-fgsm"]
    assert after["runs"] == before["runs"]
