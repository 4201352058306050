"""GAT and NuAT: guided steps, losses and turns, against loops by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.gat.gat import GuidedStep, squared_distance
from timm_robust_plugins.nuat.nuat import nuclear_distance

from tests.support import EPS, cross_entropies, curved, into_ball, on, softmax
from timm_robust.testing import Bench


def test_gat_and_nuat_distances():
    random = np.random.default_rng(0)
    clean, adversarial = 3 * random.standard_normal((2, 7, 10))
    squared = ((softmax(clean) - softmax(adversarial)) ** 2).sum(axis=1).mean()
    both = torch.from_numpy(clean), torch.from_numpy(adversarial)
    assert squared_distance(*both).item() == pytest.approx(squared, rel=1e-12)
    nuclear = np.linalg.svd(clean - adversarial, compute_uv=False).sum()
    assert nuclear_distance(*both, 7).item() == pytest.approx(nuclear / 7, rel=1e-5)
    assert nuclear_distance(*both, 64).item() == pytest.approx(nuclear / 64, rel=1e-5), "a smaller last batch"


@pytest.mark.parametrize("method", ["gat", "nuat"])
def test_guided_step_and_loss_by_hand(method):
    model = curved()
    defense, batch = on(model, method, weight=6.0)
    defense.run = replace(defense.run, epochs=100)
    defense.on_epoch_start(45)
    weight = 6.0 if method == "gat" else 3.0
    assert defense.weight == weight

    def distance(clean, adversarial):
        if method == "gat":
            return ((clean.softmax(1) - adversarial.softmax(1)) ** 2).sum(1).mean()
        return torch.linalg.svdvals(clean - adversarial).sum() / 128

    for iteration in range(4):
        torch.manual_seed(3)
        perturbed = defense.perturb(batch)
        torch.manual_seed(3)
        corner = 2 * torch.empty_like(batch.images).bernoulli_(0.5) - 1
        start = (batch.images + EPS / 2 * corner).clamp(0, 1).requires_grad_(True)
        objective = F.cross_entropy(model(start).float(), batch.targets)
        if iteration % 2:  # by turns: the first is plain
            objective = objective + weight * distance(model(batch.images).detach().float(), model(start).float())
        (gradient,) = torch.autograd.grad(objective, start)
        expected = into_ball(start.detach() + EPS * gradient.sign(), batch.images)
        assert ((perturbed.images - expected).abs() > 1e-9).double().mean() < 1e-3
        output = defense.loss(batch, perturbed)
        apart = distance(model(batch.images), model(perturbed.images)).item()
        clean_loss = cross_entropies(model(batch.images).detach().numpy(), batch.targets.numpy()).mean()
        assert output["loss"].item() == pytest.approx(clean_loss + weight * apart, rel=1e-5)
        assert torch.allclose(output["logits"], model(perturbed.images))
        defense.commit(batch, perturbed, output)


@pytest.mark.parametrize("method", ["gat", "nuat"])
def test_guidance_takes_turns_by_iteration(method, monkeypatch):
    weights, forward = [], GuidedStep.forward

    def watched(self, images, labels, weight=0.0):
        weights.append(weight)
        return forward(self, images, labels, weight)

    monkeypatch.setattr(GuidedStep, "forward", watched)
    bench = Bench.make(method)
    bench.defense.weight = 2.5
    bench.train(3)
    state = bench.defense.state_dict()
    other = Bench.make(method)
    other.defense.load_state_dict(state)
    other.defense.weight = 2.5
    other.train(2)
    assert weights == [0.0, 2.5, 0.0, 2.5, 0.0], "a resumed run goes on with the other kind"


def test_guided_weights_by_epoch():
    gat, nuat = (Bench.make(name).defense for name in ("gat", "nuat"))
    found = {"gat": [], "nuat": []}
    for name, defense in (("gat", gat), ("nuat", nuat)):
        defense.run = replace(defense.run, epochs=100)
        for epoch in range(100):
            defense.on_epoch_start(epoch)
            found[name].append(defense.weight)
    assert found["gat"] == [10.0] * 86 + [40.0] * 14
    assert np.allclose(found["nuat"], np.minimum(4.5, 4.5 * np.arange(100) / 90))
