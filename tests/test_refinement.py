"""Refined labels (SGLR) and temporal ensembling (TE) against formulas written independently, and in real small runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm_robust_plugins.sglr.sglr import (
    confidence_weights,
    interpolated,
    or_given,
    refined,
    smoothed,
    soft_cross_entropy,
)
from timm_robust_plugins.te.te import EnsemblePGD, averaged, ensemble_distance, ramp

from timm_robust.data.batch import Batch
from timm_robust.defense import Perturbed
from timm_robust.errors import UserError
from timm_robust.runs.checkpoint import load_state
from timm_robust.sample_table import last_copies
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine

from .conftest import SMALL

TARGETS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def some_logits(seed: int) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((8, 10))


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -(labels * np.log(softmax(logits))).sum(axis=1)


def divergences(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    p, q = softmax(clean), softmax(adversarial)
    return (p * np.log(p / q)).sum(axis=1)


# pure functions


@pytest.mark.parametrize(("alpha", "adv_weight"), [(0.9, 0.8), (0.9, 0.0), (0.5, 1.0), (0.0, 0.3), (1.0, 0.8)])
def test_refined_rows(alpha, adv_weight):
    table, adversarial, clean = (softmax(some_logits(seed)) for seed in range(3))
    rows = refined(*tensors(table, adversarial, clean), alpha=alpha, adv_weight=adv_weight).numpy()
    expected = alpha * table + (1 - alpha) * (adv_weight * adversarial + (1 - adv_weight) * clean)
    assert np.allclose(rows, expected, rtol=1e-12, atol=0)
    assert (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, rtol=1e-12)


def test_refined_rows_need_no_clean_prediction_where_it_has_no_weight():
    table, adversarial, clean = tensors(*(softmax(some_logits(seed)) for seed in range(3)))
    without = refined(table, adversarial, None, alpha=0.9, adv_weight=1.0)
    assert torch.equal(without, refined(table, adversarial, clean, alpha=0.9, adv_weight=1.0))


def test_refined_rows_in_closed_form():
    """alpha^k e_y + (1 - alpha) sum_j alpha^(k - j) (0.8 p'_j + 0.2 p_j), and what is left of the given label."""
    targets = torch.from_numpy(TARGETS)
    rows, visits = torch.zeros(8, 10, dtype=torch.float64), []
    left = {1: 0.9, 5: 0.59, 10: 0.35, 20: 0.12, 50: 0.005}
    for k in range(1, 51):
        visits.append(0.8 * softmax(some_logits(k)) + 0.2 * softmax(some_logits(1000 + k)))
        mixture = tensors(softmax(some_logits(k)), softmax(some_logits(1000 + k)))
        rows = refined(or_given(rows, targets), *mixture, alpha=0.9, adv_weight=0.8)
        series = sum(0.9 ** (k - j) * visit for j, visit in enumerate(visits, start=1))
        assert np.allclose(rows.numpy(), 0.9**k * np.eye(10)[TARGETS] + 0.1 * series, rtol=1e-10)
        if k in left:
            assert 0.9**k == pytest.approx(left[k], rel=0.04)
    assert torch.allclose(rows.sum(1), torch.ones(8).double(), rtol=1e-12)


def test_rows_never_visited_are_the_given_labels():
    rows = torch.zeros(3, 4)
    rows[1] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert or_given(rows, torch.tensor([2, 2, 0])).tolist() == [[0, 0, 1, 0], rows[1].tolist(), [1, 0, 0, 0]]
    assert not rows[0].any(), "not in place"


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_interpolated(r):
    rows = softmax(some_logits(0))
    found = interpolated(*tensors(rows, TARGETS), r=r).numpy()
    assert np.allclose(found, r * rows + (1 - r) * np.eye(10)[TARGETS], rtol=1e-12)
    assert np.array_equal(found, rows) or r < 1, "the released code to the bit"


def test_weighted_soft_cross_entropy():
    logits, labels = some_logits(0), softmax(some_logits(1))
    largest = labels.max(axis=1)
    weights = 8 * largest / largest.sum()
    assert np.allclose(confidence_weights(torch.from_numpy(labels)).numpy(), weights, rtol=1e-12)
    losses = cross_entropies(logits, labels)
    assert soft_cross_entropy(*tensors(logits, labels)).item() == pytest.approx(losses.mean(), rel=1e-12)
    found = soft_cross_entropy(*tensors(logits, labels, weights)).item()
    assert found == pytest.approx((weights * losses).mean(), rel=1e-12)
    assert found != pytest.approx(losses.mean(), rel=1e-2)


def test_own_prediction_as_target_has_no_gradient():
    """alpha 0, adversarial weight 1: shows that the target is detached."""
    logits = torch.from_numpy(some_logits(0)).requires_grad_()
    table = torch.from_numpy(softmax(some_logits(1)))
    rows = refined(table, logits.detach().softmax(1), None, alpha=0.0, adv_weight=1.0)
    soft_cross_entropy(logits, rows).backward()
    assert logits.grad.abs().max() < 1e-16


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


def test_last_copies():
    assert last_copies(torch.tensor([4, 2, 4, 7, 2])).tolist() == [2, 4, 2, 3, 4]


# one step


def network_outputs(bench: Bench, perturbed: Perturbed) -> tuple[np.ndarray, np.ndarray]:
    """Clean and adversarial logits in float64, in train mode; the statistics come back as they were."""
    state = {name: value.clone() for name, value in bench.model.state_dict().items()}
    with torch.no_grad():
        clean, adversarial = (bench.model(x).double().numpy() for x in (bench.batch.images, perturbed.images))
    bench.model.load_state_dict(state)
    return clean, adversarial


def mart(fit: float, clean: np.ndarray, adversarial: np.ndarray, targets: np.ndarray, beta: float) -> float:
    n, p, q = np.arange(len(targets)), softmax(clean), softmax(adversarial)
    others = q.copy()
    others[n, targets] = 0
    margin = -np.log(1.0001 - others.max(axis=1) + 1e-12).mean()
    return fit + margin + beta * ((1.0000001 - p[n, targets]) * divergences(clean, adversarial)).mean()


@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("base", ["pgd", "trades", "mart"])
def test_sglr_loss(base, reweight):
    """Against the formulas: the target is the table after this step's update, interpolated with the given label."""
    args = {"base": base, "reweight": reweight, "r": 0.7, "start": 0, "steps": 2, "beta": 3.0}
    bench = Bench.make("sglr", method_args=args)
    torch.manual_seed(0)
    perturbed, table = bench.defense.perturb(bench.batch), softmax(np.random.default_rng(1).standard_normal((16, 10)))
    bench.defense.table[bench.batch.index] = torch.from_numpy(table)
    clean, adversarial = network_outputs(bench, perturbed)
    targets = bench.batch.targets.numpy()
    rows = 0.9 * table + 0.1 * (0.8 * softmax(adversarial) + 0.2 * softmax(clean))
    labels = 0.7 * rows + 0.3 * np.eye(10)[targets]
    weights = rows.max(axis=1) / rows.max(axis=1).mean() if reweight else 1.0
    fit = (weights * cross_entropies(clean if base == "trades" else adversarial, labels)).mean()
    expected = {
        "pgd": fit,
        "trades": fit + 3 * divergences(clean, adversarial).mean(),
        "mart": mart(fit, clean, adversarial, targets, 3.0),
    }[base]
    output = bench.defense.loss(bench.batch, perturbed)
    assert output["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert np.allclose(output["rows"].numpy(), rows, atol=1e-6) and not output["rows"].requires_grad
    assert output["relabelled"].item() == pytest.approx((rows.argmax(axis=1) != targets).mean(), abs=1e-6)


def test_self_adaptive_training_is_a_setting():
    """Clean predictions refine the labels, whose largest entries weigh the samples; six times the divergence."""
    args = {"base": "trades", "adv_weight": 0, "reweight": True, "start": 0, "steps": 2}
    bench = Bench.make("sglr", method_args=args)
    perturbed = bench.defense.perturb(bench.batch)
    clean, adversarial = network_outputs(bench, perturbed)
    labels = 0.9 * np.eye(10)[bench.batch.targets] + 0.1 * softmax(clean)
    losses, largest = cross_entropies(clean, labels), labels.max(axis=1)
    expected = (16 * largest / largest.sum() * losses).sum() / 16 + 6 * divergences(clean, adversarial).mean()
    assert bench.defense.loss(bench.batch, perturbed)["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("base", ["pgd", "trades", "mart"])
def test_sglr_before_its_start_is_its_base_to_the_bit(base):
    losses = []
    for method, args in (("sglr", {"base": base, "start": 1.0}), (base, {"attack_bn": "eval"})):
        bench = Bench.make(method, method_args=args)
        losses.append(bench.train(2))
    assert losses[0] == losses[1]
    refining = Bench.make("sglr", method_args={"base": base})
    assert refining.defense.refining and refining.train(2) != losses[0]


def test_sglr_own_prediction_as_target_has_no_gradient():
    bench = Bench.make("sglr", method_args={"alpha": 0, "adv_weight": 1, "start": 0, "steps": 1})
    bench.step()[1]["loss"].backward()
    assert max(p.grad.abs().max() for p in bench.model.parameters()) < 1e-6


def test_sglr_stores_distributions_that_keep_the_label():
    bench = Bench.make("sglr", method_args={"start": 0, "steps": 1})
    index, targets = bench.batch.index, bench.batch.targets
    given = bench.defense.soft_labels(index, targets)
    assert torch.equal(given, F.one_hot(targets, 10).float())
    for visits in range(1, 4):
        bench.train(1)
        rows = bench.defense.soft_labels(index, targets)
        assert torch.allclose(rows.sum(1), torch.ones(16), atol=1e-6) and (rows >= 0).all()
        assert (rows[torch.arange(16), targets] >= 0.9**visits).all()
    assert torch.equal(rows, bench.defense.table[index])
    bench.defense.options = replace(bench.defense.options, r=0.25)
    assert torch.allclose(bench.defense.soft_labels(index, targets), 0.25 * rows + 0.75 * given)


def calls(bench: Bench) -> list[tuple[bool, bool]]:
    """(train mode, gradient) of each forward in one loss."""
    perturbed, seen = bench.defense.perturb(bench.batch), []
    with bench.model.register_forward_hook(lambda *_: seen.append((bench.model.training, torch.is_grad_enabled()))):
        bench.defense.loss(bench.batch, perturbed)
    return seen


@pytest.mark.parametrize(
    ("args", "extra"),
    [
        ({}, [(True, False)]),
        ({"clean_bn": "eval"}, [(False, False)]),
        ({"adv_weight": 1}, []),
        ({"alpha": 1}, []),
        ({"start": 1}, []),
        ({"base": "trades"}, [(True, True)]),
        ({"base": "mart"}, [(True, True)]),
    ],
)
def test_sglr_extra_forward(args, extra):
    """None where it is not needed, since in train mode it moves BatchNorm's statistics."""
    bench = Bench.make("sglr", method_args={"steps": 1, **args})
    assert calls(bench) == [(True, True), *extra]
    assert bench.model.training and all(p.requires_grad for p in bench.model.parameters())


def test_sglr_clean_prediction_in_eval_mode():
    bench = Bench.make("sglr", method_args={"steps": 1, "clean_bn": "eval", "alpha": 0, "adv_weight": 0})
    perturbed = bench.defense.perturb(bench.batch)
    rows = bench.defense.loss(bench.batch, perturbed)["rows"]
    bench.model.eval()
    assert torch.allclose(rows, bench.model(bench.batch.images).softmax(1), atol=1e-6)


def test_sglr_and_te_share_no_row_between_copies():
    """A sample that comes twice: each copy has its own target, the last one's row stays."""
    for method, key in (("sglr", "rows"), ("te", "averages")):
        bench = Bench.make(method, method_args={"start": 0, "steps": 1})
        batch = replace(bench.batch, index=torch.tensor([*range(15), 3]))
        perturbed = bench.defense.perturb(batch)
        output = bench.defense.loss(batch, perturbed)
        rows = (output | perturbed.extras)[key]
        bench.defense.commit(batch, perturbed, output)
        assert torch.equal(bench.defense.table.values[3], rows[15]) and not torch.equal(rows[3], rows[15])


@pytest.mark.parametrize(("wrong", "told"), [(0.0, False), (0.04, False), (0.5, True)])
def test_sglr_tells_how_many_labels_changed(wrong, told):
    """Only of the samples that were visited, once per epoch."""
    said = []
    defense = Bench.make("sglr", images=100, method_args={"start": 0}).defense
    defense.run.say = said.append
    for _ in range(2):
        defense.on_epoch_start(1)
        for first in (0, 25):
            index = torch.arange(first, first + 25)
            batch = Batch(torch.zeros(25, 3, 16, 16), index % 10, index)
            share = torch.tensor(wrong)
            defense.commit(batch, Perturbed(batch.images), {"rows": torch.full((25, 10), 0.1), "relabelled": share})
        defense.on_epoch_end(1)
    assert len(said) == 2 * told
    assert all("after epoch 2 the likeliest class of 50.0% of the labels" in line for line in said)


def test_smoothed_labels_are_those_of_cross_entropy_where_nothing_is_refined():
    bench = Bench.make("pgd")
    bench.run.recipe = replace(bench.run.recipe, label_smoothing=0.2)
    logits, targets = torch.randn(8, 10, dtype=torch.float64), torch.arange(8)
    labels = smoothed(F.one_hot(targets, 10).double(), amount=0.2)
    np.testing.assert_allclose(labels[3], [0.2 / 9] * 3 + [0.8] + [0.2 / 9] * 6, rtol=1e-12)
    ours = soft_cross_entropy(logits, labels)
    torch.testing.assert_close(ours, bench.defense.cross_entropy(logits, targets), rtol=1e-12, atol=0)
    refined_rows = torch.rand(8, 10, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(smoothed(refined_rows, amount=0.2).sum(1), torch.ones(8, dtype=torch.float64))
    assert torch.equal(smoothed(refined_rows, amount=0.0), refined_rows)


@pytest.mark.parametrize("method", ["sglr", "te"])
def test_norm_of_the_base(train_small, method):
    with pytest.raises(UserError, match=f"method '{method}' knows the norm Linf only, not L2"):
        train_small(method, epochs=1, norm="L2", eps=0.5, method_args={"base": "trades"})
    if method == "sglr":
        train_small(method, epochs=1, norm="L2", eps=0.5, method_args={"steps": 1})


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
    assert torch.equal(found, expected)


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


# whole runs


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(result.output / "last" / "model.safetensors")


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


EVAL = {"steps": 2, "attack_bn": "eval"}


@pytest.mark.parametrize(
    ("method", "args", "base"),
    [
        ("sglr", {"alpha": 1, "start": 0}, "pgd"),
        ("sglr", {"alpha": 1, "start": 0, "base": "trades"}, "trades"),
        ("te", {"weight": 0, "start": 0}, "pgd"),
        ("te", {"weight": 0, "start": 0, "base": "trades"}, "trades"),
    ],
)
def test_a_run_without_effect_is_the_base_to_the_bit(train_small, method, args, base):
    """With dropout, so that a forward too many would show in the draws as well."""
    settings = {"model_kwargs": {**SMALL, "drop_rate": 0.2}}
    one = train_small(method, output="one", method_args={**EVAL, **args}, **settings)
    two = train_small(base, output="two", method_args=EVAL, **settings)
    assert equal(weights(one), weights(two))
    effect = {"alpha": 0.9} if method == "sglr" else {"weight": 300}
    other = train_small(method, output="other", method_args={**EVAL, **args, **effect}, **settings)
    assert not equal(weights(one), weights(other))


class Killed(BaseException):
    """Not an Exception, like the end of a process."""


@pytest.mark.parametrize(
    ("method", "args"),
    [("sglr", {"clean_bn": "eval"}), ("sglr", {"base": "mart", "reweight": True}), ("te", {"base": "trades"})],
)
def test_resumed_run_has_the_same_table(train_small, monkeypatch, method, args):
    settings = {"epochs": 3, "method_args": {"steps": 1, "start": 0, **args}}
    whole = train_small(method, output="whole", **settings)
    original = Engine._train_epoch

    def killed_in_third(self):
        if self.epoch == 2:
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed_in_third)
    with pytest.raises(Killed):
        train_small(method, output="killed", **settings)
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = train_small(method, output="killed", resume=True, **settings)
    assert equal(weights(whole), weights(resumed))
    tables = []
    for result in (whole, resumed):
        (table,) = load_state(result.output / "last")["defense"].values()
        tables.append(table["values"])
    assert torch.equal(*tables) and (tables[0].sum(1) > 0).all(), "each sample was visited"


def test_what_is_logged(train_small):
    sglr = train_small("sglr", output="sglr", method_args={"steps": 1, "start": 1.0})
    te = train_small("te", output="te", method_args={"steps": 1, "start": 1.0, "end": 1.0})
    for result, key in ((sglr, "train_relabelled"), (te, "train_distance")):
        rows = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
        assert key not in rows[0] and 0 <= rows[1][key] <= 1
        assert "train_rows" not in rows[1]


PROCESS = """
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from timm_robust.testing import Bench

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
out = {}
for method in ("sglr", "te"):
    bench = Bench.make(method, images=32, method_args={"start": 0, "steps": 1})
    bench.model.eval()  # batch statistics aside
    for epoch in range(2):
        for number, places in enumerate(torch.arange(32).split(8)[:3]):  # the last samples are never visited
            places = places.roll(epoch)
            if (number + epoch) % world != rank:  # each process has other batches in the next epoch
                continue
            batch = replace(bench.batch, **{n: getattr(bench.batch, n)[places] for n in ("images", "targets", "index")})
            torch.manual_seed(10 * epoch + number)
            perturbed = bench.defense.perturb(batch)
            bench.defense.commit(batch, perturbed, bench.defense.loss(batch, perturbed))
        bench.defense.on_epoch_end(epoch)
    out[method] = bench.defense.table.values
torch.save(out, f"{folder}/{rank}-of-{world}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_make_the_table_of_one(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    running = [
        subprocess.Popen([sys.executable, str(script), *place, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for place in (("0", "2"), ("1", "2"), ("0", "1"))
    ]
    complaints = [process.communicate(timeout=300)[1] for process in running]
    assert not any(process.returncode for process in running), complaints
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-2", "1-of-2", "0-of-1"))
    for method in ("sglr", "te"):
        assert torch.equal(first[method], second[method]) and torch.equal(first[method], alone[method])
        assert (alone[method][:24].sum(1) > 0).all() and not alone[method][24:].any()
