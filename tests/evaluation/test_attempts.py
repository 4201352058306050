"""Attempts of each attack: inside the threat, repeatable, and not counted where they fail."""

from __future__ import annotations

import math

import pytest
import torch
import torchattacks

from tests.support import labelled, lengths, network
from timm_robust.attacks.attacker import Attacker
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import robust_correct_of
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.evaluation.attempts import attempts, margin
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 3 / 255, "3/255"), Threat("L2", 0.15, "0.15"), Threat("L1", 1.5, "1.5")


EVERYWHERE = ["fgsm", "pgd-5-2", "apgd-ce", "apgd-dlr", "apgd-t"]


BY_NORM = {
    "Linf": [*EVERYWHERE, "cw-linf", "torchattacks:MIFGSM", "torchattacks:Square:n_queries=300"],
    "L2": [*EVERYWHERE, "cw", "torchattacks:PGDL2:steps=5", "torchattacks:DeepFool:steps=5"],
    "L1": ["fgsm", "pgd-5-2", "apgd-ce", "apgd-t", "torchattacks:DeepFool:steps=5"],
}


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_every_attack_stays_inside_the_ball_and_breaks_something(threat):
    model = network()
    images, targets = labelled(model, 12)
    keep = images.clone()
    for name in BY_NORM[threat.norm]:
        spec = parse_attack(name)
        tries = attempts(spec, Attacker(model, threat), 10)
        torch.manual_seed(0)
        for attempt in tries:
            adversarial = attempt(images[1:], targets[1:])
            assert lengths(adversarial - images[1:], threat.norm).max() <= threat.eps * (1 + 1e-5), name
            assert adversarial.min() >= 0 and adversarial.max() <= 1, name
            assert not adversarial.requires_grad
        still_correct = robust_correct_of(EvalInputs(model, images, targets, threat), spec, EvalSettings(seed=1))
        assert not still_correct[0], "misclassified before any attack"
        assert still_correct[1:].float().mean() < 1, f"{name} breaks nothing"
        again = robust_correct_of(EvalInputs(model, images, targets, threat), spec, EvalSettings(seed=1))
        assert torch.equal(still_correct, again), f"{name} does not repeat"
    assert torch.equal(images, keep) and all(p.requires_grad for p in model.parameters())


def test_apgd_is_that_of_autoattack():
    """The same class with the same seed, by hand."""
    from pyautoattack.autopgd_base import APGDAttack

    model = network()
    images, targets = labelled(model, 12)
    standing = images[1:], targets[1:]
    attempt = attempts(parse_attack("apgd-ce"), Attacker(model, LINF), 10)[0]
    torch.manual_seed(3)
    ours = attempt(*standing)
    torch.manual_seed(3)
    seed = int(torch.randint(2**31 - 1, ()))
    by_hand = APGDAttack(model, n_iter=100, norm="Linf", eps=LINF.eps, seed=seed, device="cpu").perturb(*standing)
    assert torch.allclose(ours, by_hand, atol=1e-6)
    assert (ours != standing[0]).any()


def test_margin():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]])
    assert margin(logits, torch.tensor([0, 2])).tolist() == [-0.5, 3.0]


def test_the_step_keeps_its_proportion_to_the_radius(monkeypatch):
    seen = {}

    class Spy(torchattacks.PGD):
        def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True):
            super().__init__(model, eps, alpha, steps, random_start)
            seen.update(eps=eps, alpha=alpha, steps=steps)

    monkeypatch.setattr(torchattacks, "PGD", Spy)
    model = network()
    images, targets = labelled(model, 4)
    robust_correct_of(EvalInputs(model, images, targets, LINF), parse_attack("torchattacks:PGD:steps=4"))
    assert seen == {"eps": LINF.eps, "alpha": pytest.approx(LINF.eps / 4), "steps": 4}


def test_an_attack_that_fails_is_one_sentence(monkeypatch):
    class Broken(torchattacks.PGD):
        def forward(self, images, labels):
            raise IndexError("too many indices\nsecond line")

    monkeypatch.setattr(torchattacks, "PGD", Broken)
    model = network()
    images, targets = labelled(model, 4)
    with pytest.raises(UserError, match="torchattacks:PGD failed on this model .*IndexError: too many indices$"):
        robust_correct_of(EvalInputs(model, images, targets, LINF), parse_attack("torchattacks:PGD"))


def test_an_attack_that_leaves_the_ball_does_not_count(monkeypatch):
    """White images are misclassified, but they are not in the ball."""

    class Cheat(torchattacks.PGD):
        def forward(self, images, labels):
            return torch.full_like(images, math.nan)

    monkeypatch.setattr(torchattacks, "PGD", Cheat)
    model = network()
    images, targets = labelled(model, 12)
    still_correct = robust_correct_of(EvalInputs(model, images, targets, LINF), parse_attack("torchattacks:PGD"))
    assert still_correct.tolist() == [False] + [True] * 11
