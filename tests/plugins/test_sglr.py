"""SGLR: refined labels and its loss against formulas written independently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.sglr.sglr import (
    confidence_weights,
    interpolated,
    or_given,
    refined,
    smoothed,
    soft_cross_entropy,
)

from tests.support import TARGETS, cross_entropies, divergences, network_outputs, softmax, some_logits, tensors
from timm_robust.data.batch import Batch
from timm_robust.defense import Perturbed
from timm_robust.testing import Bench

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


# one step


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
    assert all("after epoch 2 the top class of 50.0% of the labels" in line for line in said)


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
