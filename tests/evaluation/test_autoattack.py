"""AutoAttack through the adapter: the verdicts of the implementation by hand."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import nn

from tests.support import labelled, network
from timm_robust.evaluation.autoattack import UNBROKEN, VERSIONS, attacks_for, run_autoattack
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.threat import Threat, make_threat

THREAT = make_threat(image_size=8)


def by_hand(model, images, targets, threat, *, batch_size, seed, version="standard", attacks=None, n_targets=9):
    """AutoAttack as its readme says; below ten classes with the attacks and targets that exist."""
    from pyautoattack import AutoAttack

    adversary = AutoAttack(model, norm=threat.norm, eps=threat.eps, version=version, seed=seed, device="cpu")
    adversary.attacks_to_run = attacks or adversary.attacks_to_run
    for part in (adversary.apgd_targeted, adversary.fab):
        part.n_target_classes = min(part.n_target_classes, n_targets)
    with torch.random.fork_rng():
        return adversary.run_standard_evaluation(images, targets, batch_size=batch_size)[1] == targets


@pytest.mark.parametrize(
    ("threat", "batch_size", "version"),
    [
        (Threat("Linf", 2 / 255, "2/255"), 5, "standard"),
        (Threat("L2", 0.1, "0.1"), 12, "standard"),
        (Threat("L1", 1.0, "1"), 12, "standard"),
        (Threat("Linf", 2 / 255, "2/255"), 12, "plus"),
        (Threat("Linf", 2 / 255, "2/255"), 4, "rand"),
    ],
    ids=["Linf", "L2", "L1", "plus", "rand"],
)
def test_verdicts_are_those_of_the_implementation_by_hand(threat, batch_size, version):
    model = network()
    images, targets = labelled(model)
    expected = by_hand(model, images, targets, threat, batch_size=batch_size, seed=3, version=version)
    result = run_autoattack(EvalInputs(model, images, targets, threat), version, EvalSettings(batch_size, seed=3))
    assert torch.equal(result.robust, expected)
    assert 0 < result.robust.float().mean() < 1, "the case must tell something"
    assert tuple(result.after) == VERSIONS[version]
    shares = list(result.after.values())
    assert shares == sorted(shares, reverse=True) and shares[-1] == pytest.approx(expected.float().mean().item())
    assert list(result.seconds) == list(result.after)


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 100])
def test_verdicts_are_the_same_attack_by_attack(classes, monkeypatch):
    """The implementation's own state says which images stand after each of its attacks."""
    from pyautoattack.state import EvaluationState

    stood = {}

    def note(state, attack):
        stood[attack] = state.robust_flags.clone()

    monkeypatch.setattr(EvaluationState, "add_run_attack", note)
    model = network(classes)
    images, targets = labelled(model, 8)
    threat = Threat("Linf", 2 / 255, "2/255")
    attacks, n_targets = attacks_for(classes)
    assert ("apgd-t" in attacks) == (classes >= 4) and n_targets == min(9, classes - 1)
    by_hand(model, images, targets, threat, batch_size=4, seed=1, attacks=attacks, n_targets=n_targets)
    result = run_autoattack(EvalInputs(model, images, targets, threat), settings=EvalSettings(batch_size=4, seed=1))
    assert list(result.after) == list(stood) == attacks
    assert result.broken_by[0] == 0, "misclassified from the start"
    for place, attack in enumerate(attacks, 1):
        assert torch.equal((result.broken_by == UNBROKEN) | (result.broken_by > place), stood[attack]), attack
        assert result.after[attack] == pytest.approx(stood[attack].float().mean().item())


def test_nothing_is_left_changed(monkeypatch):
    import pyautoattack.checks

    model = network()
    images, targets = labelled(model, 6)
    hook, logger = sys.gettrace(), logging.getLogger("auto-attack")
    monkeypatch.setitem(pyautoattack.checks.funcs, "grad", 7)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_autoattack(EvalInputs(model, images, targets, THREAT))
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"
    assert sys.gettrace() is hook and not logger.disabled
    assert pyautoattack.checks.funcs["grad"] == 7
    assert all(p.requires_grad for p in model.parameters())


def test_flags_are_reported_and_do_not_stick():
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x).softmax(1)

    images, targets = labelled(network(), 6)
    flagged = run_autoattack(EvalInputs(Softmax().eval(), images, targets, THREAT))
    assert any("softmax" in flag for flag in flagged.flags)
    again = run_autoattack(EvalInputs(network(), images, targets, THREAT))
    assert not any("softmax" in flag for flag in again.flags)


def test_channels_last_images():
    """The DLR loss of the implementations fails on channels_last strides."""
    model = network()
    images, targets = labelled(model, 6)
    last = images.to(memory_format=torch.channels_last)
    one, two = (run_autoattack(EvalInputs(model, x, targets, THREAT)) for x in (last, images))
    assert torch.equal(one.robust, two.robust)
