"""Evaluations that are killed and resumed to the same verdicts."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from tests.support import Noisy, labelled, network
from timm_robust.errors import UserError
from timm_robust.evaluation import autoattack
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.evaluation.evaluate import evaluate_model
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.evaluation.state import Slot
from timm_robust.threat import Threat, make_threat

THREAT = make_threat(image_size=8)


class Killed(Exception):
    pass


class Mortal(nn.Module):
    """A network that dies at a given forward pass, as a process does."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.left = inner, None

    def forward(self, x):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return self.inner(x)


@pytest.fixture
def shorter_attacks(monkeypatch):
    """The same attacks with fewer iterations."""
    build = autoattack._build

    def shorter(*arguments):
        adversary = build(*arguments)
        for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            part.n_iter = 12
        adversary.square.n_queries = 150
        return adversary

    monkeypatch.setattr(autoattack, "_build", shorter)


def test_killed_at_twenty_random_moments_the_verdicts_are_the_same(tmp_path, shorter_attacks):
    model = Mortal(network()).eval()
    images, targets = labelled(model, 12)
    threat = Threat("Linf", 1.5 / 255, "1.5/255")
    inputs, attacks = EvalInputs(model, images, targets, threat), ["pgd-5-1", "autoattack"]
    whole = evaluate_model(inputs, attacks, EvalSettings(5, seed=2))
    file, moments = tmp_path / "state", random.Random(0)
    kills = 0
    while kills < 20:
        model.left = moments.randrange(1, 900)
        try:
            again = evaluate_model(inputs, attacks, EvalSettings(5, seed=2, keep=file))
        except Killed:
            kills += 1
        else:
            file.unlink()
        finally:
            model.left = None
    again = evaluate_model(inputs, attacks, EvalSettings(5, seed=2, keep=file))
    for name, entry in whole.attacks.items():
        for what in entry.keys() - {"seconds", "seconds_by_attack"}:
            assert again.attacks[name][what] == entry[what], what


def test_random_models_resume_too(shorter_attacks):
    """AutoAttack *rand* on a model whose outputs are random, stopped after each batch in turn."""
    model = Noisy().eval()
    images, targets = labelled(network(), 8)
    settings, stops = EvalSettings(batch_size=3, seed=1), []
    inputs = EvalInputs(model, images, targets, Threat("Linf", 1 / 255, "1/255"), random_outputs=True)
    whole = run_autoattack(inputs, "rand", settings, slot=Slot(write=lambda at: stops.append(copy.deepcopy(at))))
    assert len(stops) > 2 and 0 < whole.robust.float().mean() < 1, "the case must tell something"
    for at in stops:
        again = run_autoattack(inputs, "rand", settings, slot=Slot(at))
        assert torch.equal(again.broken_by, whole.broken_by)
    with pytest.raises(UserError, match="has 8 images, expected 4: it is of another run"):
        run_autoattack(inputs.subset(slice(4)), "rand", settings, slot=Slot(stops[0]))


def test_other_attacks_do_not_drop_what_is_kept(tmp_path):
    model = network()
    images, targets = labelled(model, 6)
    file = tmp_path / "state"
    evaluate_model(EvalInputs(model, images, targets, THREAT), ["fgsm"], EvalSettings(keep=file))
    with pytest.raises(UserError, match=r"differs in attacks \(fgsm, now pgd-2-1\)"):
        evaluate_model(EvalInputs(model, images, targets, THREAT), ["pgd-2-1"], EvalSettings(keep=file))


def test_a_kept_evaluation_of_something_else_is_refused(tmp_path):
    model = network()
    images, targets = labelled(model, 6)
    file = tmp_path / "state"
    evaluate_model(EvalInputs(model, images, targets, THREAT), ["fgsm"], EvalSettings(keep=file))
    with pytest.raises(UserError, match=r"differs in batch size \(250, now 3\): run the command that began it"):
        evaluate_model(EvalInputs(model, images, targets, THREAT), ["fgsm"], EvalSettings(keep=file, batch_size=3))
    with torch.no_grad():
        model[0].weight.add_(0.01)
    with pytest.raises(UserError, match="differs in checkpoint"):
        evaluate_model(EvalInputs(model, images, targets, THREAT), ["fgsm"], EvalSettings(keep=file))
    evaluate_model(EvalInputs(model, images, targets, THREAT), ["fgsm"], EvalSettings(keep=file, restart=True))
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        evaluate_model(EvalInputs(model, images, targets, THREAT), ["fgsm"], EvalSettings(keep=file))
