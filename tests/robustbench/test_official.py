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
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.robustbench import benchmark, board_images, released
from timm_robust.threat import Threat, make_threat

SETTINGS = EvalSettings(batch_size=9, seed=3)


@functools.cache
def reference():
    model = network()
    images, targets = labelled(model, 16, wrong=2)
    threat = make_threat("Linf", "4/255", image_size=8)
    inputs = EvalInputs(model, images, targets, threat)
    return inputs, run_autoattack(inputs, settings=SETTINGS)


def test_benchmark_and_reference_mode_give_the_same_verdicts(robustbench, tmp_path):
    inputs, ours = reference()
    hook, generator = sys.gettrace(), torch.random.get_rng_state()
    log = tmp_path / "aa.log"
    theirs = benchmark(inputs, SETTINGS, log_path=log)
    assert all(weight.requires_grad and weight.grad is None for weight in inputs.model.parameters())
    assert torch.equal(theirs.robust, ours.robust)
    assert 0 < ours.robust.float().mean() < 14 / 16, "the case must tell something"
    assert theirs.clean_accuracy == pytest.approx(14 / 16)
    assert theirs.robust_accuracy == pytest.approx(ours.robust.float().mean().item())
    assert sys.gettrace() is hook and torch.equal(torch.random.get_rng_state(), generator)
    assert "initial accuracy: 87.50%" in log.read_text() and "robust accuracy after SQUARE" in log.read_text()


def test_evaluate_runs_it_on_the_same_images(robustbench, train_small, few_digits):
    output = train_small(epochs=1).output
    entries = timm_robust.evaluate(
        output, few_digits, attacks=["autoattack"], examples=4, robustbench=True, quiet=True
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
    model = network(3)
    with pytest.raises(UserError, match="10, 100 or 1000 classes, this one has 3"):
        benchmark(EvalInputs(model, *labelled(model, 4), make_threat(image_size=8)))
    model = network()
    with pytest.raises(UserError, match="unknown RobustBench threat model for cifar10 'L1'"):
        benchmark(EvalInputs(model, *labelled(model, 4), Threat("L1", 12.0, "12")))


def test_images_of_a_board(robustbench, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown RobustBench data set 'mnist'"):
        board_images("mnist")
    asked = []

    def load(dataset, n, folder, transform):
        asked.append((dataset.value, n, folder, transform))
        if len(asked) == 2:
            raise FileNotFoundError(folder)
        return torch.zeros(n, 3, 8, 8), torch.zeros(n).long()

    with released() as package:
        monkeypatch.setattr(package.eval, "load_clean_dataset", load)
    assert len(board_images(examples=5, data_dir=tmp_path)[0]) == 5 and asked[0][:3] == ("cifar10", 5, str(tmp_path))
    with pytest.raises(UserError, match="cifar10 could not be read from .* nor downloaded"):
        board_images(data_dir=tmp_path)
    assert asked[1][1] == 10_000, "as many as the board takes"
