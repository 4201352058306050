"""The released benchmark through the adapter."""

from __future__ import annotations

import functools
import sys

import pytest
import torch

import timm_robust
from tests.support import labelled, network
from timm_robust.errors import UserError
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.robustbench import benchmark
from timm_robust.threat import make_threat


@functools.cache
def reference():
    model = network()
    images, targets = labelled(model, 16, wrong=2)
    threat = make_threat("Linf", "4/255", image_size=8)
    return model, images, targets, run_autoattack(model, images, targets, threat, batch_size=9, seed=3)


def test_benchmark_and_reference_mode_give_the_same_verdicts(robustbench, tmp_path):
    model, images, targets, ours = reference()
    hook, generator = sys.gettrace(), torch.random.get_rng_state()
    log = tmp_path / "aa.log"
    theirs = benchmark(model, eps="4/255", batch_size=9, seed=3, images=images, targets=targets, log_path=log)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert torch.equal(theirs.robust, ours.robust)
    assert 0 < ours.robust.float().mean() < 14 / 16, "the case must tell something"
    assert theirs.clean_accuracy == pytest.approx(14 / 16)
    assert theirs.robust_accuracy == pytest.approx(ours.robust.float().mean().item())
    assert sys.gettrace() is hook and torch.equal(torch.random.get_rng_state(), generator)
    assert "initial accuracy: 87.50%" in log.read_text() and "robust accuracy after SQUARE" in log.read_text()


def test_evaluate_runs_it_on_the_same_images(robustbench, train_small, few_digits):
    output = train_small(epochs=1).output
    entries = timm_robust.evaluate(
        output, few_digits, attacks=["autoattack"], n_examples=4, robustbench=True, quiet=True
    ).attacks
    assert entries["robustbench"]["robust"] == entries["autoattack"]["robust"]
    assert entries["robustbench"]["implementation"].startswith("robustbench ")


def test_evaluate_without_it_says_so_before_measuring(train_small, few_digits, monkeypatch):
    output = train_small(epochs=1).output

    def absent():
        raise UserError("RobustBench is not installed")

    monkeypatch.setattr("timm_robust.robustbench.package.find_package", absent)
    monkeypatch.setattr("timm_robust.evaluation.evaluate.evaluate_model", None)
    with pytest.raises(UserError, match="RobustBench is not installed"):
        timm_robust.evaluate(output, few_digits, robustbench=True, quiet=True)


def test_benchmark_refuses_what_it_cannot_measure(robustbench):
    model = network()
    images, targets = labelled(model, 16, wrong=2)
    for settings, sentence in [
        ({"images": images}, "go together"),
        ({"images": images, "targets": targets, "n_examples": 17}, "n_examples is 17, there are only 16"),
        ({"dataset": "mnist"}, "unknown RobustBench data set 'mnist'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            benchmark(model, **settings)
    with pytest.raises(UserError, match="train mode"):
        benchmark(network().train(), images=images, targets=targets)
