"""AWP: the perturbation of weights against its formula and the released algorithm."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.awp.awp import AWP, weight_perturbation
from timm_robust_plugins.awp.options import AwpOptions

from tests.support import equal, weights
from timm_robust.modifier import Modifiers
from timm_robust.testing import Bench


def trained_a_little() -> Bench:
    """timm starts the last BatchNorm of a block at 0, so at first no gradient reaches the block."""
    bench = Bench.make("pgd")
    bench.train(2)
    return bench


def awp_on(bench: Bench, **options) -> Modifiers:
    modifiers = Modifiers({"awp": AWP(AwpOptions(start=0.0, **options))}, bench.model)
    modifiers.setup(bench.run)
    modifiers.on_epoch_start(0)
    return modifiers


def test_weight_perturbation_against_its_formula():
    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape) for shape in ((4, 3, 3, 3), (10, 7))]
    gradients = [1e-6 * random.standard_normal(weight.shape) for weight in weights]
    expected = [
        0.01 * np.sqrt((w**2).sum()) * g / np.sqrt((g**2).sum()) for w, g in zip(weights, gradients, strict=True)
    ]
    got = weight_perturbation([torch.tensor(w) for w in weights], [torch.tensor(g) for g in gradients], gamma=0.01)
    for one, other, weight in zip(got, expected, weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-12)
        assert one.norm().item() == pytest.approx(0.01 * np.linalg.norm(weight), rel=1e-12)


def test_a_layer_without_gradient_is_not_moved():
    (step,) = weight_perturbation([torch.ones(3, 3)], [torch.zeros(3, 3)], gamma=0.01)
    assert torch.equal(step, torch.zeros(3, 3))


def test_awp_moves_layers_only_and_brings_them_back_bit_for_bit():
    bench = trained_a_little()
    perturbed = bench.defense.perturb(bench.batch)
    before = copy.deepcopy(bench.model.state_dict())
    torch.manual_seed(3)
    with awp_on(bench, gamma=0.02).weights(lambda: bench.defense.loss(bench.batch, perturbed)["loss"]):
        drawn = torch.rand(5)
        inside = copy.deepcopy(bench.model.state_dict())
    layers = {name for name, value in bench.model.named_parameters() if value.ndim > 1}
    for name, value in before.items():
        if name in layers:
            length = (inside[name] - value).norm() / value.norm()
            assert length.item() == pytest.approx(0.02, rel=1e-4)
        else:  # biases, BatchNorm's weights, and its statistics, which the climb does not record
            assert torch.equal(inside[name], value), name
    assert equal(bench.model.state_dict(), before)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(5))  # the climb drew from nobody's stream


def test_awp_brings_weights_back_after_an_exception():
    bench = trained_a_little()
    perturbed = bench.defense.perturb(bench.batch)
    before = copy.deepcopy(bench.model.state_dict())
    with (
        pytest.raises(ZeroDivisionError),
        awp_on(bench).weights(lambda: bench.defense.loss(bench.batch, perturbed)["loss"]),
    ):
        raise ZeroDivisionError
    assert equal(bench.model.state_dict(), before)


def test_awp_takes_the_gradient_of_the_released_algorithm():
    """A proxy climbs with one step of SGD, each layer's way is scaled to gamma times its norm, and added."""
    bench = trained_a_little()
    perturbed = bench.defense.perturb(bench.batch)
    bench.model.zero_grad()
    by_hand = copy.deepcopy(bench.model)
    proxy = copy.deepcopy(bench.model)
    (-F.cross_entropy(proxy(perturbed.images), bench.batch.targets)).backward()
    torch.optim.SGD(proxy.parameters(), lr=0.01).step()
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            if weight.ndim > 1:
                way = dict(proxy.named_parameters())[name] - weight
                weight += 0.01 * weight.norm() / (way.norm() + 1e-20) * way
    F.cross_entropy(by_hand(perturbed.images), bench.batch.targets).backward()

    with awp_on(bench, gamma=0.01).weights(lambda: bench.defense.loss(bench.batch, perturbed)["loss"]):
        bench.defense.loss(bench.batch, perturbed)["loss"].backward()
    for (name, ours), theirs in zip(bench.model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    statistics = dict(by_hand.named_buffers())
    for name, ours in bench.model.named_buffers():
        torch.testing.assert_close(ours, statistics[name], rtol=1e-3, atol=1e-5, msg=name)


def test_awp_with_gamma_0_changes_nothing(train_small):
    plain = train_small("pgd", "plain", method_args={"steps": 2})
    modified = train_small("pgd", "awp", method_args={"steps": 2}, modifiers={"awp": {"gamma": 0}})
    perturbed = train_small("pgd", "moved", method_args={"steps": 2}, modifiers={"awp": {"start": 0}})
    assert equal(weights(plain.output), weights(modified.output))
    assert not equal(weights(plain.output), weights(perturbed.output))
    assert perturbed.history[0]["passes"] == plain.history[0]["passes"] + 1


def test_awp_starts_when_it_is_told_to(train_small):
    plain = train_small("fgsm-rs", "plain")
    late = train_small("fgsm-rs", "late", modifiers={"awp": {"start": 0.5}})
    assert [row["passes"] for row in plain.history] == [2.0, 2.0]
    assert [row["passes"] for row in late.history] == [2.0, 3.0]
    assert plain.history[0]["train_loss"] == late.history[0]["train_loss"]
