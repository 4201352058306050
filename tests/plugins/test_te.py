"""Temporal ensembling: averages, ramp, loss and attack against formulas written independently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.te.te import EnsemblePGD, averaged, ensemble_distance, ramp

from tests.support import cross_entropies, divergences, network_outputs, softmax, some_logits, tensors
from timm_robust.errors import UserError
from timm_robust.testing import Bench

# pure functions


def test_ramp():
    """The released code's weight at its epochs of 200."""
    early = {1: 0, 89: 0, 90: 2.02, 95: 4.49, 100: 9.31, 105: 18.0, 110: 32.5}
    late = {120: 86.0, 130: 172.1, 135: 219.5, 140: 261.1, 145: 289.8, 150: 300, 151: 300, 200: 300}
    expected = early | late
    assert {epoch: 300 * ramp(epoch, 90, 150) for epoch in expected} == pytest.approx(expected, rel=2e-3)


def test_ramp_without_a_way_is_a_jump():
    assert [ramp(epoch, 3, 3) for epoch in (2, 3, 4)] == [0, 1, 1]


def test_averaged_constant_predictions():
    """After n visits (1 - 0.9^n) p, which scaled is p from the first one on."""
    probabilities = softmax(some_logits(0))
    rows = torch.zeros(8, 10, dtype=torch.float64)
    for n in range(1, 30):
        rows, ensembled = averaged(rows, torch.from_numpy(probabilities), eta=0.9)
        assert np.allclose(rows.numpy(), (1 - 0.9**n) * probabilities, rtol=1e-12)
        assert np.allclose(ensembled.numpy(), probabilities, rtol=1e-12)


def test_averaged_is_the_bias_corrected_average():
    rows, series = torch.zeros(8, 10, dtype=torch.float64), np.zeros((8, 10))
    for n in range(1, 8):
        rows, ensembled = averaged(rows, torch.from_numpy(softmax(some_logits(n))), eta=0.7)
        series = 0.7 * series + 0.3 * softmax(some_logits(n))
        assert np.allclose(ensembled.numpy(), series / (1 - 0.7**n), rtol=1e-12)
        assert np.allclose(ensembled.sum(1).numpy(), 1, rtol=1e-12)


def test_ensemble_distance():
    """The code's scale and the paper's: 300 over the classes is 30 as a sum, for ten of them."""
    logits, ensembled = some_logits(0), softmax(some_logits(1))
    squares = ((softmax(logits) - ensembled) ** 2).sum(axis=1).mean()
    mean, total = (
        ensemble_distance(*tensors(logits, ensembled), reduction=reduction).item()
        for reduction in ("mean_bk", "sum_k_mean_b")
    )
    assert total == pytest.approx(squares, rel=1e-12)
    assert 300 * mean == pytest.approx(30 * squares, rel=1e-12)


# one step


def test_te_refuses_an_end_before_its_start(train_small):
    with pytest.raises(UserError, match=r"'end' of method 'te' is 0\.2: expected at least start"):
        train_small("te", epochs=1, method_args={"end": 0.2})


@pytest.mark.parametrize(
    ("epochs", "share", "first"), [(200, 0.45, 90), (100, 0.07, 7), (30, 0.45, 14), (10, 0.0, 1), (10, 1.0, 10)]
)
def test_first_epoch(epochs, share, first):
    """The first epoch, counted from 1, that is not before the share of the run."""
    for method, active in (("sglr", "refining"), ("te", "weight")):
        args = {"start": share} | ({"end": 1.0} if method == "te" else {})
        defense = Bench.make(method, method_args=args).defense
        defense.run = replace(defense.run, epochs=epochs)
        found = []
        for epoch in range(epochs):
            defense.on_epoch_start(epoch)
            found.append(bool(getattr(defense, active)))
        assert found.index(True) == first - 1 and all(found[first - 1 :])


@pytest.mark.parametrize("reduction", ["mean_bk", "sum_k_mean_b"])
@pytest.mark.parametrize(("base", "te_target"), [("pgd", "clean"), ("trades", "clean"), ("trades", "adv")])
def test_te_loss(base, te_target, reduction):
    args = {"base": base, "te_target": te_target, "reduction": reduction, "weight": 20, "start": 0, "end": 0, "beta": 3}
    bench = Bench.make("te", method_args={**args, "steps": 2})
    table = softmax(np.random.default_rng(1).standard_normal((16, 10))) * 0.4
    bench.defense.table[bench.batch.index] = torch.from_numpy(table)
    torch.manual_seed(0)
    bench.model.eval()
    with torch.no_grad():
        prediction = softmax(bench.model(bench.batch.images).double().numpy())
    bench.model.train()
    perturbed = bench.defense.perturb(bench.batch)
    averages = 0.9 * table + 0.1 * prediction
    ensembled = averages / averages.sum(axis=1, keepdims=True)
    assert np.allclose(perturbed.extras["averages"].numpy(), averages, atol=1e-6)
    assert np.allclose(perturbed.extras["ensembled"].numpy(), ensembled, atol=1e-6)

    clean, adversarial = network_outputs(bench, perturbed)
    regularised = clean if (base, te_target) == ("trades", "clean") else adversarial
    squares = (softmax(regularised) - ensembled) ** 2
    distance = squares.mean() if reduction == "mean_bk" else squares.sum(axis=1).mean()
    fit = cross_entropies(clean if base == "trades" else adversarial, np.eye(10)[bench.batch.targets]).mean()
    expected = fit + 20 * distance + (3 * divergences(clean, adversarial).mean() if base == "trades" else 0)
    output = bench.defense.loss(bench.batch, perturbed)
    assert output["loss"].item() == pytest.approx(expected, rel=1e-5)
    bench.defense.commit(bench.batch, perturbed, output)
    assert torch.equal(bench.defense.table[bench.batch.index], perturbed.extras["averages"])


def test_te_clean_forward_leaves_statistics_and_draws_alone():
    args = {"base": "pgd", "start": 0, "end": 0, "weight": 1e-30, "steps": 2}  # a weight that no float32 sum notices
    one, two = Bench.make("te", method_args=args), Bench.make("pgd", method_args={"steps": 2, "attack_bn": "eval"})
    assert one.train(3) == two.train(3)
    for (name, value), other in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize(("beta", "name"), [(None, "pgd"), (16.0, "tpgd")])
def test_te_attack_without_weight_is_its_bases(beta, name):
    """16 images: TRADES' sum over the batch is then 16 times its mean."""
    bench = Bench.make("pgd")
    settings = {"steps": 3, "alpha": 2 / 255}
    given = bench.run.attacker, bench.batch.images, bench.batch.targets
    bench.model.eval()
    clean = bench.model(bench.batch.images).detach()
    torch.manual_seed(0)
    expected = given[0](*given[1:], name, **settings)
    torch.manual_seed(0)
    ensembled = torch.full((16, 10), 0.1)
    found = given[0](
        *given[1:], EnsemblePGD, ensembled, 0.0, clean, beta=beta, reduction="mean_bk", random_start=True, **settings
    )
    # sum and mean round differently, so a gradient near zero may change its sign on some processors
    assert (found - expected).abs().gt(1e-6).float().mean() < 0.002


@pytest.mark.parametrize("beta", [None, 6.0])
def test_te_attack_ascends_its_objective(beta):
    """One step without noise, against the sign of the gradient of the formula."""
    bench = Bench.make("pgd")
    model = bench.model.eval()
    torch.manual_seed(0)
    noise = 0.001 * torch.randn_like(bench.batch.images)
    start = (bench.batch.images + (0 if beta is None else noise)).clamp(0, 1).requires_grad_(True)
    ensembled = torch.from_numpy(softmax(np.random.default_rng(0).standard_normal((16, 10)))).float()
    logits, clean = model(start), model(bench.batch.images).detach()
    objective = 50 * (logits.softmax(1) - ensembled).square().sum() / 160
    if beta is None:
        objective = objective + F.cross_entropy(logits, bench.batch.targets)
    else:
        p, q = clean.softmax(1), logits.softmax(1)
        objective = objective + beta / 16 * (p * (p / q).log()).sum()
    (gradient,) = torch.autograd.grad(objective, start)
    alpha = 2 / 255
    expected = (start.detach() + alpha * gradient.sign()).clamp(0, 1)
    torch.manual_seed(0)
    settings = {"beta": beta, "reduction": "mean_bk", "random_start": False, "steps": 1, "alpha": alpha}
    found = bench.run.attacker(
        bench.batch.images, bench.batch.targets, EnsemblePGD, ensembled, 50.0, clean, bn="eval", **settings
    )
    sure = gradient.abs() > 1e-3 * gradient.abs().max()
    assert torch.allclose(found[sure], expected[sure], atol=1e-6) and sure.double().mean() > 0.05


def test_te_gradient_flows_through_the_current_prediction_only():
    logits = torch.from_numpy(some_logits(0)).requires_grad_()
    probabilities = logits.detach().softmax(1)
    averages, ensembled = averaged(torch.zeros(8, 10).double(), probabilities, eta=0.9)
    assert not averages.requires_grad and not ensembled.requires_grad
    ensemble_distance(logits, ensembled, reduction="mean_bk").backward()
    assert logits.grad.abs().max() < 1e-16, "at the first visit the average is the prediction itself"
