"""The loop: it learns, averages, accumulates, is freed afterwards, and two processes agree."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from tests.support import equal, weights
from timm_robust.errors import RunFailed
from timm_robust.training.engine import Engine


def test_learns(train_small):
    rows = train_small("standard", epochs=12, lr=0.01, batch_size=25).history
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    assert rows[-1]["val_clean"] > 0.5


def test_same_seed_same_weights_other_seed_other_weights(train_small):
    first, again, other = (train_small(output=o, seed=s).output for o, s in (("a", 1), ("b", 1), ("c", 2)))
    assert equal(weights(first), weights(again))
    assert not equal(weights(first), weights(other))


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


def test_best_is_the_epoch_of_highest_validation_robustness(train_small):
    result = train_small("standard", epochs=4)
    scores = [(row["val_robust"], row["val_clean"]) for row in result.history]
    metadata = json.loads((result.output / "best/model.json").read_text())
    assert scores[metadata["epoch"] - 1] == max(scores)


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
        "total = sum(p.double().sum().item() for p in e.unwrapped_model.parameters())\n"
        "buffers = sum(b.double().sum().item() for b in e.unwrapped_model.buffers())\n"
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


def test_moving_average_against_its_formula(train_small):
    kept = []
    original = Engine._update

    def update(self, clip):
        original(self, clip)
        kept.append(self.unwrapped_model.model.conv1.weight.detach().double().clone())

    Engine._update = update
    try:
        result = train_small("standard", epochs=1, recipe_args={"ema": 0.9})
    finally:
        Engine._update = original
    average = kept[0]
    for step in kept[1:]:
        average = 0.9 * average + 0.1 * step
    torch.testing.assert_close(weights(result.output)["conv1.weight"].double(), average, rtol=1e-5, atol=1e-6)


def fail(row):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe_args": {"ema": 0.9, "check_attack": "pgd-1-1", "diagnose": 10, "watch_every": 2, "watch_examples": 5}},
        {"precision": "bf16", "image_size": 16, "method": "lbgat", "method_args": {"steps": 1}},
        {"method": "atas", "modifiers": ["awp"]},
        {"epochs": 6, "recipe_args": {"stop_on_overfitting": 1, "check_attack": "pgd-1-1"}},
        {"callbacks": [SimpleNamespace(on_epoch_end=fail)]},
    ],
    ids=["monitors", "bf16-auxiliary-network", "table-and-modifier", "stopped", "failed"],
)
def test_engine_and_networks_are_freed_without_the_garbage_collector(train_small, monkeypatch, settings):
    """Several runs in one process, such as a comparison, would keep the device's memory otherwise."""
    made, init = [], Engine.__init__

    def noted(self, config):
        init(self, config)
        parts = (self, self.unwrapped_model, self.eval_model, self.auxiliary_model, self.optimizer, self.context)
        made.extend(weakref.ref(part) for part in parts if part is not None)

    monkeypatch.setattr(Engine, "__init__", noted)
    robust, check = iter([0.9, 0.1, 0.1, 0.1, 0.1, 0.1]), Engine._check
    monkeypatch.setattr(Engine, "_check", lambda self: {**check(self), "val_clean": 0.95, "val_robust": next(robust)})
    gc.collect()
    gc.disable()
    try:
        with suppress(RunFailed):
            train_small(**settings)
        held = [type(part()).__name__ for part in made if part() is not None]
    finally:
        gc.enable()
    assert made and not held
