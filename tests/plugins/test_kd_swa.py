"""KD-SWA: its loss against formulas in float64 NumPy."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm_robust_plugins.kd_swa.kd_swa import distillation_loss

from tests.support import (
    PLACES,
    Noting,
    cross_entropy,
    curved,
    differences,
    fixed_logits_one_wrong,
    on,
    perturbed_at_random,
    softmax,
)
from timm_robust.attacks.attacker import Attacker
from timm_robust.testing import Bench


def distilled(logits: np.ndarray, teacher: np.ndarray, temperature: float = 2.0) -> float:
    """T^2 CE(z / T, softmax(t / T)), as the released code has it."""
    return temperature**2 * cross_entropy(logits / temperature, softmax(teacher / temperature))


def entropy(teacher: np.ndarray, temperature: float = 2.0) -> float:
    """What the released code's loss cannot fall below."""
    return distilled(teacher, teacher, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distillation_is_the_released_cross_entropy_less_the_teachers_entropy(temperature):
    student, teacher = fixed_logits_one_wrong(0), fixed_logits_one_wrong(1)
    logits, frozen = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)
    loss = distillation_loss(logits, frozen, temperature=temperature)
    assert loss.item() == pytest.approx(
        distilled(student, teacher, temperature) - entropy(teacher, temperature), rel=1e-9
    )
    loss.backward()
    ours = [logits.grad[place].item() for place in PLACES]
    slopes = differences(lambda z: distilled(z, teacher, temperature), [student], 0, PLACES)
    assert ours == pytest.approx(slopes, rel=1e-5, abs=1e-7)
    assert distillation_loss(frozen, frozen.clone(), temperature=temperature).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("weights", [(0.3, 0.1, 0.6), (1.0, 0.0, 0.0), (0.0, 1.0, 0.5)])
def test_kd_swa_loss_by_hand(weights):
    """Both teachers see the adversarial images, without a gradient."""
    names = ("label_weight", "natural_weight", "robust_weight")
    defense, batch = on(curved(), "kd-swa", temperature=3.0, **dict(zip(names, weights, strict=True)))
    teachers = {name: Noting(copy.deepcopy(curved())) for name in ("natural_teacher", "robust_teacher")}
    for shift, teacher in enumerate(teachers.values(), start=1):
        with torch.no_grad():
            teacher.network[0].weight.add_(0.3 * shift)
    defense.run.teachers = teachers
    perturbed = perturbed_at_random(batch)
    loss = defense.loss(batch, perturbed)["loss"]
    for teacher in teachers.values():
        ((shown, training, with_gradient),) = teacher.seen
        assert torch.equal(shown, perturbed.images) and not training and not with_gradient

    student, natural, robust = (
        network(perturbed.images).detach().numpy() for network in (defense.run.model, *teachers.values())
    )
    expected = weights[0] * cross_entropy(student, batch.targets.numpy())
    for weight, teacher in zip(weights[1:], (natural, robust), strict=True):
        expected += weight * (distilled(student, teacher, 3.0) - entropy(teacher, 3.0))
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(p.grad is None for teacher in teachers.values() for p in teacher.parameters())


def test_kd_swa_knows_l2():
    bench = Bench.make("kd-swa")
    threat = replace(bench.run.threat, norm="L2", eps=0.5)
    bench.defense.run = replace(bench.run, threat=threat, attacker=Attacker(bench.model, threat))
    length = (bench.step()[0].images - bench.batch.images).flatten(1).norm(dim=1)
    assert (length <= 0.5 + 1e-5).all() and (length > 0.3).all()
