"""The fast mode as a whole: the reference's robust accuracy, resume, shards, and second passes."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from timm_robust.errors import UserError
from timm_robust.evaluation.autoattack import VERSIONS
from timm_robust.evaluation.fast import apgd, run, run_fast, square
from timm_robust.evaluation.fast.network import Network
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import PRECISIONS, EvalSettings, FastMode
from timm_robust.evaluation.state import Slot
from timm_robust.threat import Threat

LINF, L2 = Threat("Linf", 1 / 32, "1/32"), Threat("L2", 0.25, "0.25")
BF16 = EvalSettings(fast=FastMode("bf16"))


# the crafting copy


@pytest.mark.parametrize("images, lanes", [(0, 1), (33, 33), (64, 64), (66, 33), (200, 50)])
def test_square_has_no_small_last_batch_on_a_cpu(images, lanes, problem):
    assert run._cpu_lanes(square.Square(problem(LINF), 6, 10), images, 256) == lanes
    assert run._cpu_lanes(apgd.APGD(problem(LINF), "ce", 1, 1, 10), images, 256) == run.CPU_LANES
    assert run._cpu_lanes(square.Square(problem(LINF), 6, 10), images, 16) <= 16


# verdicts


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_robust_accuracy_is_the_references(net, digits, threat, double, monkeypatch):
    """Three targets and few queries, so that it takes seconds."""
    monkeypatch.setattr(square, "QUERIES", 100)
    monkeypatch.setattr(run, "attacks_for", lambda classes, version: (VERSIONS[version], 3))
    images, targets = digits[0][:40], digits[1][:40]
    reference = AutoAttack(net, eps=threat.eps, norm=threat.norm, seed=0)
    reference.square.n_queries = 100
    reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = 3
    with torch.random.fork_rng(devices=[]):
        adversarial, _ = reference.run_standard_evaluation(images, targets, batch_size=40)
    with torch.no_grad():
        expected = net(adversarial).argmax(1) == targets
        clean = net(images).argmax(1) == targets
        result = run_fast(EvalInputs(net, images, targets, threat))
        fell = net(result.adversarial).argmax(1) != targets
    assert 5 <= expected.sum() <= clean.sum() - 5  # a verdict that could have been otherwise
    assert (result.robust != expected).sum() <= 1
    assert torch.equal(fell, ~result.robust)
    away = (result.adversarial - images).flatten(1)
    assert (away.abs().amax(1) if threat.norm == "Linf" else away.norm(dim=1)).max() <= threat.eps + 1e-9
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    assert list(result.after) == ["apgd-ce", "apgd-t", "fab-t", "square"] == list(result.seconds)
    assert result.after["square"] == result.robust.float().mean().item()
    shares = [clean.float().mean().item(), *result.after.values()]
    assert shares == sorted(shares, reverse=True)
    assert torch.equal(result.broken_by == 0, ~clean)


def test_plus_runs_the_six_attacks(net, digits, short):
    result = run_fast(EvalInputs(net, digits[0][:12], digits[1][:12], LINF), "plus")
    assert list(result.after) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]


def test_batch_size_and_shards_do_not_matter(net, digits, short):
    images, targets = digits[0][:40], digits[1][:40]
    inputs = EvalInputs(net, images, targets, LINF)
    whole = run_fast(inputs, settings=EvalSettings(batch_size=64))
    small = run_fast(inputs, settings=EvalSettings(batch_size=5))
    assert torch.equal(whole.broken_by, small.broken_by)
    assert len(set(whole.broken_by.tolist())) > 2
    for rows in (torch.arange(0, 40, 2), torch.arange(1, 40, 2)):
        shard = run_fast(inputs.subset(rows))
        assert torch.equal(shard.broken_by, whole.broken_by[rows])
    other = run_fast(inputs, settings=EvalSettings(seed=1))
    differs = (other.adversarial - whole.adversarial).flatten(1).abs().amax(1) > 0
    assert torch.equal(differs, whole.broken_by > 0)


def test_a_killed_run_goes_on_to_the_same_verdicts(net, digits, short, monkeypatch):
    monkeypatch.setattr(run, "SECONDS_BETWEEN_SAVES", 0)
    inputs, settings = EvalInputs(net, digits[0][:20], digits[1][:20], LINF), EvalSettings(batch_size=8)
    saves = []
    whole = run_fast(inputs, settings=settings, slot=Slot(write=saves.append))
    assert len(saves) > 100

    class Killed(Exception):
        pass

    for moment in torch.randperm(len(saves), generator=torch.Generator().manual_seed(0))[:6].tolist():
        count, kept = itertools.count(), {}

        def save(state, count=count, kept=kept, moment=moment):
            kept.update(state)
            if next(count) == moment:
                raise Killed

        with pytest.raises(Killed):
            run_fast(inputs, settings=settings, slot=Slot(write=save))
        again = run_fast(inputs, settings=settings, slot=Slot(kept))
        assert torch.equal(again.broken_by, whole.broken_by) and again.after == whole.after
    with pytest.raises(UserError, match="20 images, expected 10"):
        run_fast(inputs.subset(slice(10)), slot=Slot(saves[-1]))


class Unlike(nn.Linear):
    """Its copies have other weights."""

    def __deepcopy__(self, memo):
        return Unlike(self.in_features, self.out_features)


def test_a_copy_that_computes_something_else_is_refused():
    model = nn.Sequential(nn.Flatten(), Unlike(12, 5)).eval()
    with pytest.raises(UserError, match="that of Sequential gives other logits: use the reference mode"):
        run_fast(EvalInputs(model, torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.long), LINF))


def test_nothing_of_the_process_changes(small_model, few_digits, short):
    images, targets = (part[:10] for part in few_digits[1])
    small_model.eval()
    before, state = copy.deepcopy(small_model.state_dict()), torch.get_rng_state()
    run_fast(EvalInputs(small_model, images, targets, LINF), settings=BF16)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in small_model.parameters())


def test_progress_counts_forward_passes(net, digits, short):
    told = []
    result = run_fast(EvalInputs(net, digits[0][:10], digits[1][:10], LINF), progress=lambda *a: told.append(a))
    assert all(0 <= done <= of and status.startswith("robust so far ") for _, done, of, status in told)
    assert [done for _, done, _, _ in told] == sorted(done for _, done, _, _ in told), "it counts on"
    assert list(dict.fromkeys(name for name, *_ in told)) == [f"autoattack {name}" for name in result.after]
    _, done, of, status = told[-1]
    assert done == of and status == f"robust so far {result.after['square']:.1%}"


class Coarse(Network):
    """A crafting copy in bf16 whose logits come in large steps, so that it misses what falls by a hair."""

    def __call__(self, images, **settings):
        logits = super().__call__(images, **settings)
        return logits if self.precision == "fp32" else logits + ((logits / 4).round() * 4 - logits).detach()

    def logits(self, images):
        return self(images).detach()


def test_what_comes_close_in_bf16_runs_once_more_in_float32(net, digits, short, monkeypatch):
    images, targets = digits
    threat = Threat("Linf", 0.06, "0.06")
    inputs, skip = EvalInputs(net, images, targets, threat), ("fab-t", "square")
    exact = run_fast(inputs, skip=skip)
    monkeypatch.setattr(run, "Network", Coarse)
    saves = []
    coarse = run_fast(inputs, settings=BF16, skip=skip, slot=Slot(write=saves.append))
    monkeypatch.setattr(apgd, "CLOSE", -math.inf)  # nothing is close
    missed = run_fast(inputs, settings=BF16, skip=skip)
    assert exact.robust.sum() <= coarse.robust.sum() < missed.robust.sum()
    assert not (saves[-1]["close"] & coarse.robust[:, None]).any()


def test_what_was_close_is_kept_by_a_state(net, digits, short, monkeypatch):
    monkeypatch.setattr(run, "Network", Coarse)
    monkeypatch.setattr(run, "SECONDS_BETWEEN_SAVES", 0)
    images, targets = digits
    inputs, skip = EvalInputs(net, images, targets, Threat("Linf", 0.06, "0.06")), ("apgd-ce", "fab-t", "square")
    saves, slow = [], replace(BF16, batch_size=8)
    whole = run_fast(inputs, settings=slow, skip=skip, slot=Slot(write=lambda s: saves.append(copy.deepcopy(s))))
    between = [s for s in saves if s["attack"] == "apgd-t" and s["close"].any()]
    assert any(s["ended"][s["broken_by"] < 0].all() for s in between), "killed in the second pass"
    for state in between[:: max(len(between) // 5, 1)]:
        assert torch.equal(run_fast(inputs, settings=BF16, skip=skip, slot=Slot(state)).robust, whole.robust)


def test_a_process_without_images_has_nothing_to_say(net, digits, short):
    result = run_fast(EvalInputs(net, *digits, LINF).subset(slice(0)))
    assert len(result.robust) == len(result.broken_by) == 0 and list(result.after)[-1] == "square"


def test_what_it_cannot_do_is_refused(net, digits):
    images, targets = digits[0][:2], digits[1][:2]
    for threat, version, words in (
        (Threat("L1", 12.0, "12"), "standard", "not L1: use the reference mode"),
        (LINF, "rand", "no version rand"),
        (LINF, "standart", "unknown AutoAttack version"),
    ):
        with pytest.raises(UserError, match=words):
            run_fast(EvalInputs(net, images, targets, threat), version)
    with pytest.raises(UserError, match="unknown precision"):
        FastMode("fp8")
    with pytest.raises(UserError, match="train mode"):
        EvalInputs(copy.deepcopy(net).train(), images, targets, LINF)
    assert PRECISIONS == ("fp32", "bf16")
