"""`distill`: the folder it writes, the same files after a kill and by two processes, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import timm_robust
from tests.support import SMALL, distill_digits, distilled_content
from timm_robust.data import as_tensors, load_data
from timm_robust.data.distilled import training_images
from timm_robust.distillation.writer import class_entries
from timm_robust.errors import UserError
from timm_robust.models.factory import build_model
from timm_robust.runs.checkpoint import save_model


def test_the_folder(distilled):
    manifest = json.loads((distilled / "manifest.json").read_text())
    assert sorted(path.name for path in distilled.iterdir()) == [
        "manifest.json",
        "observer",
        "patches.jsonl",
        "soft_labels.npy",
        "train",
    ]
    assert manifest["complete"] and manifest["settings"] == {"factor": 2} and manifest["images"] == 30
    assert manifest["source"]["data"] == "digits" and manifest["seed"] == 0 and manifest["observer"]["accuracy"] > 0.6
    assert [(one["name"], one["folder"], one["observer_class"]) for one in manifest["classes"]] == [
        (str(n), str(n), n) for n in range(10)
    ]
    assert {"reading", "scoring", "writing"} == set(manifest["seconds"])
    assert all(len(list((distilled / "train" / str(n)).glob("*.png"))) == 3 for n in range(10))


KILLED = """
import os, signal, sys
import timm_robust, timm_robust.distillation.writer as module
write, done = module.DistilledWriter.write, []
def killed(self, made):
    if len(done) == 4:  # in the middle of the fifth class
        (self.path / "train/4").mkdir(parents=True)
        (self.path / "train/4/00000.png").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(made)
    write(self, made)
module.DistilledWriter.write = killed
timm_robust.distill("digits", observer=sys.argv[1], output=sys.argv[2], ipc=3, quiet=True, workers=0,
                    device="cpu", method_args={"factor": 2, "pool": 30})
"""


def test_a_killed_distillation_goes_on_to_the_same_files(distilled, observer, tmp_path):
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(observer), str(folder)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    with pytest.raises(UserError, match="is not distilled to the end: timm-robust distill --resume --output"):
        load_data(str(folder))
    with pytest.raises(UserError, match="started with ipc=3, not 4"):
        distill_digits(observer, folder, ipc=4, resume=True)
    untouched = {path: path.stat().st_mtime_ns for n in range(4) for path in (folder / f"train/{n}").iterdir()}
    distill_digits(observer, folder, resume=True)
    assert distilled_content(folder) == distilled_content(distilled)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    again = distill_digits(observer, folder, resume=True)  # nothing is left to do
    assert again.manifest["complete"] and not (folder / ".parts").exists()


def test_two_processes_make_the_same_files_as_one(distilled, observer, tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *(
            "--rdzv-endpoint=localhost:0",
            "-m",
            "timm_robust",
            "distill",
            "--data",
            "digits",
            "--observer",
            str(observer),
        ),
        *(
            "--ipc",
            "3",
            "-o",
            "factor=2",
            "pool=30",
            "--workers",
            "0",
            "--device",
            "cpu",
            "--output",
            str(tmp_path / "two"),
        ),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert distilled_content(tmp_path / "two") == distilled_content(distilled)
    assert json.loads((tmp_path / "two/manifest.json").read_text())["processes"] == 2


def test_large_images_stream_and_broken_ones_are_left_out(tmp_path, monkeypatch):
    """Four patches above 64 pixels, of images of any shape; the folder's own validation split is kept."""
    digits = load_data("digits", stream=True).train
    for split, each in (("train", 9), ("val", 4), ("test", 4)):
        for number in range(3):
            (tmp_path / "data" / split / f"c{number}").mkdir(parents=True)
            for i, place in enumerate(np.flatnonzero(digits.labels == number)[:each]):
                image = digits.images.read(int(place)).resize((90, 76 + i))
                image.save(tmp_path / "data" / split / f"c{number}" / f"{i}.jpg")
    (tmp_path / "data/train/c1/8.jpg").write_bytes(b"no image")
    model = build_model(
        "resnet18", num_classes=3, image_size=72, model_kwargs=SMALL, data_mean=[0.5] * 3, data_std=[0.5] * 3
    )
    names = ["c2", "c0", "c1"]  # another order, which the names tell
    save_model(tmp_path / "observer", model, {"data": {"class_names": names}})
    monkeypatch.setattr("timm_robust.distillation.observer.require_order", lambda *args, **kwargs: 0.5)
    with pytest.warns(UserWarning, match=r"train/c1/8.jpg cannot be read and is left out"):
        result = distill_digits(
            tmp_path / "observer", tmp_path / "small", str(tmp_path / "data"), ipc=2, method_args={}, precision="bf16"
        )
    assert result.manifest["settings"] == {"factor": 2} and result.manifest["held_out"] is None
    assert [one["observer_class"] for one in result.manifest["classes"]] == [1, 2, 0]
    assert [one["images"] for one in result.manifest["classes"]] == [9, 8, 9]
    few = load_data(str(tmp_path / "small"))
    assert not few.train.resident and few.image_size == 72 and (len(few.val), len(few.test)) == (12, 12)
    assert Image.open(next((tmp_path / "small").glob("train/c0/*.png"))).size == (72, 72)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="class 'c1' has only 8 readable images of the 9"):
        distill_digits(
            tmp_path / "observer",
            tmp_path / "more",
            str(tmp_path / "data"),
            ipc=1,
            method_args={"factor": 3, "pool": 9},
        )


def test_an_observer_in_another_order_is_refused(observer, tmp_path):
    bundle = load_data("digits")
    train, test = as_tensors(bundle.train), as_tensors(bundle.test)
    turned = tuple((images, (labels + 1) % 10) for images, labels in (train, test))
    with pytest.raises(UserError, match="has its classes in another order than the data"):
        distill_digits(observer, tmp_path / "turned", data=turned)
    assert not (tmp_path / "turned").exists()


def test_classes_keep_their_order_and_folders_are_safe(tmp_path):
    names = [str(number) for number in range(12)]
    entries = class_entries(names, None)
    for entry in entries:
        (tmp_path / "train" / entry["folder"]).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / entry["folder"] / "00000.png")
    found, images = training_images(tmp_path, "x", {"complete": True, "classes": entries})
    assert found == tuple(names) and images.images.paths[2] == "train/2/00000.png"  # sorted, 10 would come before 2
    for bad in (["a/b", "c"], ["..", "c"], ["A", "a"], [".x", "y"]):
        assert [entry["folder"] for entry in class_entries(bad, None)] == ["00000", "00001"]


def test_a_distillation_is_not_resumed_as_a_run(distilled):
    with pytest.raises(UserError, match="holds a distillation and no run"):
        timm_robust.train("resnet18", "standard", output=distilled, resume=True)


def test_a_folder_with_a_distillation_is_not_overwritten(distilled, observer):
    with pytest.raises(UserError, match="holds another distillation: continue it with --resume"):
        distill_digits(observer, distilled)
