"""The loop: it learns, resumes to the same bits, survives what goes wrong, and leaves no process-wide state behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import timm_robust
from timm_robust.errors import RunFailed, UserError
from timm_robust.plugin import get_manager
from timm_robust.runs import checkpoint
from timm_robust.training import resume as snapshots
from timm_robust.training.engine import Engine


def weights(folder, name="last"):
    return load_file(folder / name / "model.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_learns(train_small):
    rows = train_small("standard", epochs=12, lr=0.01, batch_size=25).history
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    assert rows[-1]["val_clean"] > 0.5


def test_same_seed_same_weights_other_seed_other_weights(train_small):
    first, again, other = (train_small(output=o, seed=s).output for o, s in (("a", 1), ("b", 1), ("c", 2)))
    assert equal(weights(first), weights(again))
    assert not equal(weights(first), weights(other))


class Killed(BaseException):
    """Not an Exception, like the end of a process."""


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


def test_resume_refuses_other_settings(train_small):
    train_small(epochs=1)
    with pytest.raises(UserError, match="was started with seed=0, not 5"):
        train_small(epochs=1, seed=5, resume=True)


def test_resume_without_a_run(train_small):
    with pytest.raises(UserError, match="nothing to resume"):
        train_small(resume=True)


def test_folder_of_another_run_is_refused(train_small, tmp_path):
    train_small(epochs=1)
    before = weights(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds another run: continue it with --resume, or .*run-2"):
        train_small(epochs=1)
    assert equal(before, weights(tmp_path / "run"))


def test_two_precisions_in_one_process(train_small):
    """accelerate keeps its precision for the whole process and refuses a second one."""
    first = train_small(output="a", epochs=1, image_size=16)
    second = train_small(output="b", epochs=1, image_size=16, precision="bf16")
    third = train_small(output="c", epochs=1, image_size=16)
    assert equal(weights(first.output), weights(third.output))
    assert not equal(weights(first.output), weights(second.output))


def test_accumulation_equals_larger_batches_without_batchnorm(train_small):
    """The gradient of two accumulated batches is that of their union, where nothing depends on the batch."""
    plain = {
        "model": "vit_tiny_patch16_224",
        "model_kwargs": {"embed_dim": 24, "depth": 1, "num_heads": 2},
        "method": "standard",
        "epochs": 1,
    }
    common = {"optimizer": "momentum", "schedule": "constant", "augment": "none", "check_attack": "pgd-1-1"}
    large = train_small(output="a", batch_size=270, recipe_args=common, **plain)
    small = train_small(output="b", batch_size=135, recipe_args={**common, "accumulate": 2}, **plain)
    for name, value in weights(large.output).items():
        assert torch.allclose(value, weights(small.output)[name], atol=1e-5), name


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(train_small, monkeypatch, tmp_path):
    from timm_robust_plugins.fgsm_rs.fgsm_rs import FGSMRS

    original = FGSMRS.loss

    def broken(self, batch, perturbed):
        output = original(self, batch, perturbed)
        return {**output, "loss": output["loss"] * float("nan")} if self.epoch_now == 1 else output

    monkeypatch.setattr(FGSMRS, "loss", broken)
    monkeypatch.setattr(FGSMRS, "on_epoch_start", lambda self, epoch: setattr(self, "epoch_now", epoch))
    with pytest.raises(RunFailed, match=r"the loss is nan in epoch 2, batch 1 .*last holds epoch 1"):
        train_small(epochs=3)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values() if value.is_floating_point())
    assert json.loads((tmp_path / "run/last/model.json").read_text())["epoch"] == 1


def test_lost_weights_stop_the_run_though_the_loss_is_finite(train_small, monkeypatch):
    from timm_robust_plugins.fgsm_rs.fgsm_rs import FGSMRS

    def lose(self, epoch):
        with torch.no_grad():
            self.run.unwrapped_model.model.layer4[0].conv1.weight[0, 0, 0, 0] = float("nan")

    monkeypatch.setattr(FGSMRS, "commit", lambda self, batch, perturbed, output: lose(self, 0))
    monkeypatch.setattr("timm_robust.training.engine.require_finite_loss", lambda engine, total, step: None)
    with pytest.raises(RunFailed, match="weight 'model.layer4.0.conv1.weight' is no longer finite after epoch 1"):
        train_small(epochs=1)


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


def test_best_is_the_epoch_of_highest_validation_robustness(train_small):
    result = train_small("standard", epochs=4)
    scores = [(row["val_robust"], row["val_clean"]) for row in result.history]
    metadata = json.loads((result.output / "best/model.json").read_text())
    assert scores[metadata["epoch"] - 1] == max(scores)


def test_observers_are_told_and_shielded(train_small, capfd):
    from timm_robust.plugin import hookimpl

    class Watcher:
        def __init__(self):
            self.seen = []

        @hookimpl
        def timm_robust_run_start(self, run):
            self.seen.append(("start", run.epochs))

        @hookimpl
        def timm_robust_epoch_end(self, epoch, metrics):
            self.seen.append((epoch, metrics["epoch"]))
            raise RuntimeError("watcher broke")

        @hookimpl
        def timm_robust_run_end(self, result):
            self.seen.append("end")

    watcher = Watcher()
    with get_manager().using(watcher, name="watcher"):
        train_small(epochs=2)
    assert watcher.seen == [("start", 2), (0, 1)]
    assert "watcher broke" in capfd.readouterr().err


def test_tensorboard_on_request(train_small):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train_small(epochs=2, track=["tensorboard"])
    (events,) = result.output.rglob("events.out.tfevents.*.0")
    found = EventAccumulator(str(events.parent)).Reload()
    logged = [round(event.value, 5) for event in found.Scalars("val_clean")]
    assert logged == [round(row["val_clean"], 5) for row in result.history]


def test_a_missing_extra_names_it(train_small, monkeypatch):
    monkeypatch.setattr("timm_robust.training.accelerator.get_available_trackers", list)
    with pytest.raises(
        UserError, match=r"needs tensorboard, which is not installed: pip install 'timm-robust\[tensorboard\]'"
    ):
        train_small(track=["tensorboard"])


def test_fp16_needs_a_gpu(train_small):
    with pytest.raises(UserError, match="'fp16' needs a GPU: use bf16 or fp32"):
        train_small(precision="fp16", device="cpu")


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


@pytest.mark.parametrize("modifiers", [{}, {"awp": {"start": 0.0}, "swa": {"start": 0.0}}], ids=["plain", "awp-swa"])
def test_two_processes_agree(tmp_path, modifiers):
    """Data parallel training on two gloo processes: one set of weights, every image seen once per epoch."""
    script = tmp_path / "run.py"
    script.write_text(
        "import torch, timm_robust, sys\n"
        "from timm_robust.training.engine import Engine\n"
        "seen = []\n"
        "import timm_robust_plugins.trades.trades as t\n"
        "original = t.TRADES.commit\n"
        "t.TRADES.commit = lambda self, batch, p, o: seen.extend(batch.index.tolist())\n"
        "kept = []\n"
        "init = Engine.__init__\n"
        "def hold(self, job): init(self, job); kept.append(self)\n"
        "Engine.__init__ = hold\n"
        "timm_robust.train('resnet18', 'trades', model_kwargs={'layers': [1, 1, 1, 1], 'channels': [8, 8, 16, 16]},\n"
        f"    modifiers={modifiers!r},\n"
        "    method_args={'steps': 1}, epochs=2, output=sys.argv[1], test_attacks=[], quiet=True, device='cpu',\n"
        "    recipe_args={'check_attack': 'pgd-1-1'})\n"
        "e = kept[0]\n"
        "total = sum(p.double().sum().item() for p in e.bare.parameters())\n"
        "buffers = sum(b.double().sum().item() for b in e.bare.buffers())\n"
        "torch.save((seen, total, buffers), f'{sys.argv[1]}/rank{e.accelerator.process_index}.pt')\n"
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        str(script),
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (seen0, sum0, buffers0), (seen1, sum1, buffers1) = (torch.load(out / f"rank{r}.pt") for r in (0, 1))
    assert sum0 == sum1 and buffers0 == buffers1
    assert set(seen0) | set(seen1) == set(range(1294)) and len(seen0) == len(seen1) == 2 * 647
    assert (out / "best/model.safetensors").is_file()


def test_what_a_method_refuses_leaves_the_folder_free(train_small, tmp_path):
    with pytest.raises(UserError, match="max_step"):
        train_small("atas", method_args={"max_step": 2})
    assert not (tmp_path / "run").exists()
    assert train_small("atas", epochs=1).output == tmp_path / "run"
