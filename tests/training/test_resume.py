"""Runs resumed to the same bits, and full disks."""

from __future__ import annotations

import pytest
import torch

import timm_robust
from tests.support import Killed, equal, weights
from timm_robust.errors import RunFailed
from timm_robust.runs import checkpoint
from timm_robust.training import resume as snapshots
from timm_robust.training.engine import Engine


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "recipe_args": {
                "ema": 0.9,
                "schedule": "cosine",
                "warmup_epochs": 1,
                "accumulate": 2,
                "check_attack": "pgd-1-1",
            }
        },
        {"recipe_args": {"optimizer": "adamw", "schedule": "cyclic", "clip_grad": 1.0, "check_attack": "pgd-1-1"}},
        {"method": "trades", "method_args": {"steps": 2}, "precision": "bf16", "image_size": 16},
        {"activation": "smoothrelu"},
        {
            "method": "atas",
            "method_args": {"reset_epochs": 2},
            "recipe_args": {"eps_warmup_epochs": 3, "check_attack": "pgd-1-1"},
        },
    ],
    ids=["onecycle", "ema-cosine-accumulate", "adamw-cyclic-clip", "trades-bf16", "smoothrelu", "eps-warm-up"],
)
def test_resumed_run_ends_with_the_same_bits(train_small, monkeypatch, settings):
    whole = train_small(output="whole", epochs=3, **settings)

    original = Engine._train_epoch

    def killed_in_second(self):
        if self.epoch == 1:
            self.defense.perturb(next(iter(self.loader.epoch(1))))  # some draws are already made
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed_in_second)
    with pytest.raises(Killed):
        train_small(output="killed", epochs=3, **settings)
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = train_small(output="killed", epochs=3, resume=True, **settings)
    assert equal(weights(whole.output), weights(resumed.output))
    assert equal(weights(whole.output, "best"), weights(resumed.output, "best"))
    timeless = [{k: v for k, v in row.items() if "seconds" not in k} for row in whole.history]
    assert timeless == [{k: v for k, v in row.items() if "seconds" not in k} for row in resumed.history]


def test_full_disk_costs_an_epochs_files_and_not_the_run(train_small, monkeypatch, capfd):
    original, calls = checkpoint.save_state, []

    def full(folder, state):
        calls.append(state["epoch"])
        if state["epoch"] == 1:
            raise OSError(28, "No space left on device")
        original(folder, state)

    monkeypatch.setattr(snapshots, "save_state", full)
    result = train_small(epochs=2)
    assert calls == [1, 2] and len(result.history) == 2
    assert "No space left on device" in capfd.readouterr().err


def test_full_disk_at_the_end_rescues_the_model(train_small, monkeypatch):
    original = checkpoint.save_model

    def full(folder, model, metadata):
        if "rescued" not in str(folder):
            raise OSError(28, "No space left on device")
        original(folder, model, metadata)

    monkeypatch.setattr(snapshots, "save_model", full)
    monkeypatch.setattr(checkpoint, "save_model", full)
    with pytest.raises(RunFailed, match=r"it is in .*rescued") as failure:
        train_small(epochs=1)
    folder = str(failure.value).rpartition("it is in ")[2]
    assert timm_robust.load(folder)(torch.rand(2, 3, 8, 8)).shape == (2, 10)
