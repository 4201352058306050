"""SGLR and TE in real runs: without effect the base to the bit, resumed, and merged over two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.support import SMALL, Killed, equal, weights
from timm_robust.errors import UserError
from timm_robust.runs.checkpoint import load_state
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine

# one step


def test_sglr_and_te_share_no_row_between_copies():
    """A sample that comes twice: each copy has its own target, the last one's row stays."""
    for method, key in (("sglr", "rows"), ("te", "averages")):
        bench = Bench.make(method, method_args={"start": 0, "steps": 1})
        batch = replace(bench.batch, index=torch.tensor([*range(15), 3]))
        perturbed = bench.defense.perturb(batch)
        output = bench.defense.loss(batch, perturbed)
        rows = (output | perturbed.extras)[key]
        bench.defense.commit(batch, perturbed, output)
        assert torch.equal(bench.defense.table.values[3], rows[15]) and not torch.equal(rows[3], rows[15])


@pytest.mark.parametrize("method", ["sglr", "te"])
def test_norm_of_the_base(train_small, method):
    with pytest.raises(UserError, match=f"method '{method}' knows the norm Linf only, not L2"):
        train_small(method, epochs=1, norm="L2", eps=0.5, method_args={"base": "trades"})
    if method == "sglr":
        train_small(method, epochs=1, norm="L2", eps=0.5, method_args={"steps": 1})


# whole runs


EVAL = {"steps": 2, "attack_bn": "eval"}


@pytest.mark.parametrize(
    ("method", "args", "base"),
    [
        ("sglr", {"alpha": 1, "start": 0}, "pgd"),
        ("sglr", {"alpha": 1, "start": 0, "base": "trades"}, "trades"),
        ("te", {"weight": 0, "start": 0}, "pgd"),
        ("te", {"weight": 0, "start": 0, "base": "trades"}, "trades"),
    ],
)
def test_a_run_without_effect_is_the_base_to_the_bit(train_small, method, args, base):
    """With dropout, so that a forward too many would show in the draws as well."""
    settings = {"model_kwargs": {**SMALL, "drop_rate": 0.2}}
    one = train_small(method, output="one", method_args={**EVAL, **args}, **settings)
    two = train_small(base, output="two", method_args=EVAL, **settings)
    assert equal(weights(one), weights(two))
    effect = {"alpha": 0.9} if method == "sglr" else {"weight": 300}
    other = train_small(method, output="other", method_args={**EVAL, **args, **effect}, **settings)
    assert not equal(weights(one), weights(other))


@pytest.mark.parametrize(
    ("method", "args"),
    [("sglr", {"clean_bn": "eval"}), ("sglr", {"base": "mart", "reweight": True}), ("te", {"base": "trades"})],
)
def test_resumed_run_has_the_same_table(train_small, monkeypatch, method, args):
    settings = {"epochs": 3, "method_args": {"steps": 1, "start": 0, **args}}
    whole = train_small(method, output="whole", **settings)
    original = Engine._train_epoch

    def killed_in_third(self):
        if self.epoch == 2:
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed_in_third)
    with pytest.raises(Killed):
        train_small(method, output="killed", **settings)
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = train_small(method, output="killed", resume=True, **settings)
    assert equal(weights(whole), weights(resumed))
    tables = []
    for result in (whole, resumed):
        (table,) = load_state(result.output / "last")["defense"].values()
        tables.append(table["values"])
    assert torch.equal(*tables) and (tables[0].sum(1) > 0).all(), "each sample was visited"


def test_what_is_logged(train_small):
    sglr = train_small("sglr", output="sglr", method_args={"steps": 1, "start": 1.0})
    te = train_small("te", output="te", method_args={"steps": 1, "start": 1.0, "end": 1.0})
    for result, key in ((sglr, "train_relabelled"), (te, "train_distance")):
        rows = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
        assert key not in rows[0] and 0 <= rows[1][key] <= 1
        assert "train_rows" not in rows[1]


PROCESS = """
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from timm_robust.testing import Bench

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
out = {}
for method in ("sglr", "te"):
    bench = Bench.make(method, images=32, method_args={"start": 0, "steps": 1})
    bench.model.eval()  # batch statistics aside
    for epoch in range(2):
        for number, places in enumerate(torch.arange(32).split(8)[:3]):  # the last samples are never visited
            places = places.roll(epoch)
            if (number + epoch) % world != rank:  # each process has other batches in the next epoch
                continue
            batch = replace(bench.batch, **{n: getattr(bench.batch, n)[places] for n in ("images", "targets", "index")})
            torch.manual_seed(10 * epoch + number)
            perturbed = bench.defense.perturb(batch)
            bench.defense.commit(batch, perturbed, bench.defense.loss(batch, perturbed))
        bench.defense.on_epoch_end(epoch)
    out[method] = bench.defense.table.values
torch.save(out, f"{folder}/{rank}-of-{world}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_make_the_table_of_one(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    running = [
        subprocess.Popen([sys.executable, str(script), *place, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for place in (("0", "2"), ("1", "2"), ("0", "1"))
    ]
    complaints = [process.communicate(timeout=300)[1] for process in running]
    assert not any(process.returncode for process in running), complaints
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-2", "1-of-2", "0-of-1"))
    for method in ("sglr", "te"):
        assert torch.equal(first[method], second[method]) and torch.equal(first[method], alone[method])
        assert (alone[method][:24].sum(1) > 0).all() and not alone[method][24:].any()
