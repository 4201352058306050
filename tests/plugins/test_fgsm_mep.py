"""FGSM-MEP: prior, soft labels and loss against a loop by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.fgsm_mep.fgsm_mep import PriorFGSM, next_prior, soft_labels

from tests.support import EPS, cross_entropies, curved, on, parameter_gradient


def test_mep_soft_labels():
    labels = soft_labels(torch.tensor([2, 0]), 5, 0.4)
    assert torch.allclose(labels, torch.tensor([[0.1, 0.1, 0.6, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1, 0.1]]))
    assert torch.allclose(soft_labels(torch.arange(7), 100, 0.4).sum(1), torch.ones(7))


def test_mep_next_prior():
    random = np.random.default_rng(0)
    prior, momentum, gradient = random.standard_normal((3, 4, 3, 5, 5))
    prior = np.clip(prior * EPS, -EPS, EPS)
    expected = gradient + 0.3 * momentum
    delta, moved = next_prior(*map(torch.from_numpy, (prior, momentum, gradient)), decay=0.3, step=EPS, eps=EPS)
    assert np.allclose(moved.numpy(), expected, rtol=1e-12)
    assert np.allclose(delta.numpy(), np.clip(prior + EPS * np.sign(expected), -EPS, EPS), atol=1e-15)


def test_mep_by_hand():
    """Three visits of a batch, in the released code's units: the momentum's gradient has L1 norm 1 over the batch."""
    model = curved()
    defense, batch = on(model, "fgsm-mep", attack_bn="eval", table_dtype="float32")
    labels = np.full((16, 10), 0.4 / 9)
    labels[np.arange(16), batch.targets] = 0.6
    prior, momentum = defense.priors.values.numpy().astype(np.float64), np.zeros((16, 3, 16, 16))
    assert set(np.abs(prior).ravel()) == {np.float64(np.float32(EPS))} and 0.4 < (prior > 0).mean() < 0.6
    clean = batch.images.numpy()
    for _ in range(3):
        start = torch.from_numpy(clean + prior).clamp(0, 1).requires_grad_(True)
        start_logits = model(start)
        (gradient,) = torch.autograd.grad(F.cross_entropy(start_logits.float(), torch.from_numpy(labels)), start)
        gradient = gradient.numpy()
        images = np.clip(clean + np.clip(prior + EPS * np.sign(gradient), -EPS, EPS), 0, 1)
        perturbed = defense.perturb(batch)
        assert np.allclose(perturbed.images.numpy(), images, atol=1e-6)

        logits, start_logits = model(torch.from_numpy(images)).detach().numpy(), start_logits.detach().numpy()
        distance = ((logits - start_logits) ** 2).mean()
        output = defense.loss(batch, perturbed)
        assert output["distance"].item() == pytest.approx(distance, rel=1e-4)
        expected = cross_entropies(logits, labels).mean() + 10 * distance
        assert output["loss"].item() == pytest.approx(expected, rel=1e-4)

        defense.commit(batch, perturbed, output)
        momentum = gradient / np.abs(gradient).sum() + 0.3 * momentum
        prior = np.clip(prior + EPS * np.sign(momentum), -EPS, EPS)
        assert (np.abs(defense.priors.values.numpy() - prior) > 1e-6).mean() < 1e-3
        scale = defense.run.recipe.batch_size * 3 * 16 * 16
        assert np.allclose(defense.momenta.values.numpy(), scale * momentum, rtol=1e-3, atol=1e-4)
        prior = defense.priors.values.numpy().astype(np.float64)


def test_mep_gradient_flows_through_both_ends():
    model = curved()
    defense, batch = on(model, "fgsm-mep", attack_bn="eval", smoothing=0.4)
    perturbed = defense.perturb(batch)
    images, start = perturbed.images, (batch.images + perturbed.extras["prior"]).clamp(0, 1)
    logits, start_logits = model(images), model(start)
    loss = F.cross_entropy(logits, perturbed.extras["labels"].double()) + 10 * (logits - start_logits).square().mean()
    expected = parameter_gradient(loss, model)
    found = parameter_gradient(defense.loss(batch, perturbed)["loss"], model)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_mep_starts_anew_every_forty_epochs():
    defense, _ = on(curved(), "fgsm-mep")
    seen = []
    for epoch in range(100):
        defense.priors.fill(0.0)
        defense.momenta.fill(1.0)
        defense.on_epoch_start(epoch)
        if defense.priors.values.any():
            seen.append(epoch)
        assert defense.momenta.values.any() == (epoch not in (0, 40, 80))
    assert seen == [0, 40, 80]


def test_mep_prior_may_not_be_out_of_the_ball():
    defense, batch = on(curved(), "fgsm-mep", attack_bn="eval", step_ratio=4.0)
    assert defense.priors.values.abs().max() <= 1.001 * EPS
    raw = PriorFGSM(defense.run.attacker.view, EPS, 4 * EPS)
    images = raw(batch.images, batch.targets, defense.priors[batch.index])
    assert (images - batch.images).abs().max() <= EPS + 1e-9
