"""Robust overfitting: what is measured, that measuring disturbs nothing, and a run that ends by itself."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm_robust_plugins.fgsm_rs.fgsm_rs import FGSMRS
from torch import nn

import timm_robust
from tests.support import Killed, epoch_rows, equal, softmax, timeless, weights
from timm_robust.data import make_eval_loader, some
from timm_robust.recipes.recipe import Recipe
from timm_robust.report.panels import panels_of
from timm_robust.runs.history import ROBUST_OVERFITTING, was_stopped
from timm_robust.training.engine import Engine
from timm_robust.training.monitors.robust_overfitting import (
    RobustOverfittingMonitor,
    calibration_error,
    entropies,
    fallen,
    gradient_norms,
)

WATCHED = {"diagnose": 40, "check_attack": "pgd-1-1"}


def undiagnosed(rows):
    return [{k: v for k, v in row.items() if k != "diagnosis"} for row in timeless(rows)]


def calibration(p, targets):
    """Expected calibration error, bin by bin."""
    confidence, right, error = p.max(axis=1), p.argmax(axis=1) == targets, 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


# formulas


@pytest.fixture
def rows_of_probabilities():
    random = np.random.default_rng(0)
    return softmax(3 * random.standard_normal((50, 10))), softmax(3 * random.standard_normal((50, 10)))


def test_gradient_norms(rows_of_probabilities):
    p, q = rows_of_probabilities
    expected = np.sqrt(((p - q) ** 2).sum(axis=1))
    assert np.allclose(gradient_norms(*map(torch.from_numpy, (p, q))).numpy(), expected, rtol=1e-12)
    certain = torch.eye(3)
    assert gradient_norms(certain, certain.roll(1, 0)).tolist() == pytest.approx([2**0.5] * 3)
    assert not gradient_norms(certain, certain).any()


def test_the_gradient_of_a_last_layer_has_that_norm_exactly():
    """With features h, the gradient of weights and bias together is (p - q) (h, 1), sample by sample."""
    torch.manual_seed(0)
    layer, h = nn.Linear(7, 5).double(), torch.randn(6, 7).double()
    q = torch.randn(6, 5).double().softmax(1)
    q[3] = torch.eye(5)[2]
    logits = layer(h)
    g = gradient_norms(logits.detach().softmax(1), q)
    for i in range(6):
        loss = -(q[i] * logits[i].log_softmax(0)).sum()
        found = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        norm = sum(part.square().sum() for part in found).sqrt()
        assert norm.item() == pytest.approx((g[i] * (h[i].square().sum() + 1).sqrt()).item(), rel=1e-12)


def test_entropies(rows_of_probabilities):
    p, _ = rows_of_probabilities
    assert np.allclose(entropies(torch.from_numpy(p)).numpy(), -(p * np.log(p)).sum(axis=1), rtol=1e-12)
    assert entropies(torch.eye(4)).tolist() == [0] * 4
    assert entropies(torch.full((1, 8), 0.125)).item() == pytest.approx(np.log(8))


def test_calibration_error(rows_of_probabilities):
    p, _ = rows_of_probabilities
    targets = np.random.default_rng(1).integers(10, size=50)
    found = calibration_error(torch.from_numpy(p), torch.from_numpy(targets))
    assert found == pytest.approx(calibration(p, targets), rel=1e-12) and found > 0.1
    certain = torch.eye(4).double()
    assert calibration_error(certain, torch.arange(4)) == 0.0
    assert calibration_error(certain, torch.tensor([0, 1, 3, 2])) == 0.5
    uniform = torch.full((4, 2), 0.5).double()
    assert calibration_error(uniform, torch.tensor([0, 1, 0, 1])) == 0.0, "one half are right, with that confidence"


@pytest.mark.parametrize(
    ("robust", "n", "count", "epoch"),
    [
        ((0.3, 0.5, 0.4, 0.4), 400, 2, 2),  # two standard errors are 5 points
        ((0.3, 0.5, 0.46, 0.46), 400, 0, 2),  # 4 points are chance
        ((0.3, 0.5, 0.46, 0.46), 4000, 2, 2),  # with more images they are not
        ((0.5, 0.4, 0.4, 0.48, 0.4), 400, 1, 1),  # near the best again
        ((0.5, 0.4, 0.4, 0.51, 0.5), 400, 0, 4),
        ((0.5, 0.4, 0.4), 400, 2, 1),
        ((0.0, 0.0), 400, 0, 1),
        ((1.0, 0.99), 400, 1, 1),  # nothing is chance where all are right
    ],
)
def test_fallen(robust, n, count, epoch):
    found, best = fallen(epoch_rows(*robust), n, learned=0.2)
    assert found == count and best["epoch"] == epoch


def test_what_names_one_class_has_no_robustness_to_lose():
    rows = [*epoch_rows(0.15, clean=0.15), *epoch_rows(0.0, 0.02, 0.3, 0.1)]
    assert [fallen(rows[:i], 400, learned=0.2)[0] for i in range(1, 6)] == [0, 0, 0, 0, 1]
    assert fallen(rows[:1], 400, learned=0.2)[1] is None


# the diagnosis


def test_a_diagnosis_by_hand(train_small, engines):
    """With a radius of next to nothing every image is its own adversarial image."""
    recipe = {**WATCHED, "label_noise": 0.4}
    result = train_small(epochs=3, recipe_args=recipe, eps=1e-9, batch_size=25, lr=0.01)
    data, best = engines[-1].config.data, max(row["epoch"] for row in result.history if row["best"])
    part, positions = some(data.train, 40)
    assert (part.labels == data.train.labels[positions]).all()
    (batch,) = make_eval_loader(part, batch_size=40)
    probabilities = {
        name: softmax(timm_robust.load(result.output / name)(batch.images).detach().double().numpy())
        for name in ("best", "last")
    }
    p, y, true = probabilities["last"], part.labels, part.true_labels
    right = probabilities["best"].argmax(axis=1) == y
    g = np.sqrt(((p - np.eye(10)[y]) ** 2).sum(axis=1))
    noisy, answers = y != true, p.argmax(axis=1)
    (watched,) = make_eval_loader(data.test, batch_size=40, n_examples=40)
    test = softmax(timm_robust.load(result.output / "last")(watched.images).detach().double().numpy())
    expected = {
        "train_clean": (answers == y).mean(),
        "train_robust": (answers == y).mean(),
        "train_ece": calibration(p, y),
        "test_clean": (test.argmax(axis=1) == watched.targets.numpy()).mean(),
        "test_robust": (test.argmax(axis=1) == watched.targets.numpy()).mean(),
        "test_ece": calibration(test, watched.targets.numpy()),
        "g": g.mean(),
        "g_right": g[right].mean(),
        "g_wrong": g[~right].mean(),
        "g_wrong_share": g[~right].sum() / g.sum(),
        "wrong": (~right).mean(),
        "label_entropy": 0.0,
        "relabelled": 0.0,
        "noisy_images": noisy.sum(),
        "noisy_given": (answers == y)[noisy].mean(),
        "noisy_true": (answers == true)[noisy].mean(),
        "noisy_g": g[noisy].mean(),
    }
    found = dict(result.history[-1]["diagnosis"])
    assert found.pop("gradient_norm") > 0
    assert found == pytest.approx(expected, abs=2e-5)
    assert 5 < noisy.sum() < 25 and 0 < right.sum() < 40 and best in (1, 2, 3)
    rows = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history


def test_attacked_images_are_another_matter(train_small):
    found = train_small("standard", epochs=4, recipe_args=WATCHED, eps=0.2, batch_size=25, lr=0.01).history[-1][
        "diagnosis"
    ]
    assert found["train_robust"] < found["train_clean"] and found["test_robust"] < found["test_clean"]


def test_a_diagnosis_disturbs_nothing(train_small, engines):
    train_small(epochs=1, recipe_args={**WATCHED, "ema": 0.9})
    engine = engines[-1]
    model = engine.unwrapped_model.train()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    frozen = next(model.parameters()).requires_grad_(False)

    def everything():
        networks = (model, engine.eval_model)
        modes = [m.training for network in networks for m in network.modules()]
        wanting = [(p.requires_grad, p.grad) for network in networks for p in network.parameters()]
        state = [v.clone() for network in networks for v in network.state_dict().values()]
        return modes, wanting, engine.counter.passes, state, torch.get_rng_state(), np.random.get_state()[1].copy()

    before = everything()
    row = {"best": True}
    engine.monitors["robust overfitting"].on_epoch_end(row)
    after = everything()
    assert row["diagnosis"] and before[:3] == after[:3]
    assert all(torch.equal(a, b) for a, b in zip(before[3], after[3], strict=True))
    assert torch.equal(before[4], after[4]) and (before[5] == after[5]).all()
    assert not norm.training and not frozen.requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recipe_args": {"ema": 0.9, "clip_grad": 0.5, "accumulate": 2, "check_attack": "pgd-1-1"}},
        {"method": "sglr", "method_args": {"steps": 1, "start": 0}},
    ],
    ids=["plain", "clipped", "sglr"],
)
def test_a_diagnosed_run_has_the_same_weights(train_small, settings):
    recipe = settings.pop("recipe_args", {"check_attack": "pgd-1-1"})
    plain = train_small(output="plain", recipe_args=recipe, **settings)
    watched = train_small(output="watched", recipe_args={**recipe, "diagnose": 40}, **settings)
    assert equal(weights(plain), weights(watched)) and equal(weights(plain, "best"), weights(watched, "best"))
    assert undiagnosed(plain.history) == undiagnosed(watched.history), "passes too"
    assert all("diagnosis" in row for row in watched.history)


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_gradient_norm_before_the_step(train_small, monkeypatch, clip):
    norms, original = [], Engine._update

    def measured(self, clip):
        squares = sum(p.grad.double().square().sum().item() for p in self.unwrapped_model.parameters())
        norms.append(squares**0.5)
        return original(self, clip)

    monkeypatch.setattr(Engine, "_update", measured)
    rows = train_small(recipe_args={**WATCHED, "clip_grad": clip}).history
    for row, part in zip(rows, (norms[:6], norms[6:]), strict=True):
        assert row["diagnosis"]["gradient_norm"] == pytest.approx(np.mean(part), rel=1e-4)


def test_steps_that_overflowed_are_left_out():
    measuring, silent = RobustOverfittingMonitor(Recipe(diagnose=1)), RobustOverfittingMonitor(Recipe())
    for norm in (3.0, float("inf"), None, float("nan"), 5.0):
        step = SimpleNamespace(gradient_norm=None if norm is None else torch.tensor(norm))
        measuring.on_step(step)
        silent.on_step(step)
    assert measuring._norms.tolist() == [8.0, 2.0]
    assert silent._norms is None and measuring.wants_gradient_norm and not silent.wants_gradient_norm


def test_refined_labels_are_seen(train_small):
    args = {"steps": 1, "start": 0, "alpha": 0.1, "adv_weight": 1.0}
    rows = train_small("sglr", method_args=args, recipe_args={**WATCHED, "label_noise": 0.4}, epochs=3, lr=0.01).history
    last = rows[-1]["diagnosis"]
    assert last["label_entropy"] > 0.1 and last["relabelled"] > 0.1
    assert {"Entropy of the labels, nats", "Labels whose likeliest class changed"} <= {p.title for p in panels_of(rows)}


@pytest.mark.parametrize("method", ["fgsm-rs", "sglr"])
def test_resumed_to_the_same_rows(train_small, monkeypatch, method):
    settings = {"method": method, "epochs": 4, "recipe_args": {**WATCHED, "label_noise": 0.3, "stop_on_overfitting": 9}}
    if method == "sglr":
        settings["method_args"] = {"steps": 1, "start": 0}
    whole = train_small(output="whole", **settings)
    original = Engine._train_epoch

    def killed(self):
        if self.epoch == 2:
            raise Killed
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_train_epoch", killed)
        with pytest.raises(Killed):
            train_small(output="killed", **settings)
    resumed = train_small(output="killed", resume=True, **settings)
    assert timeless(whole.history) == timeless(resumed.history)
    assert equal(weights(whole), weights(resumed))


def test_groups_stay_those_of_the_best_epoch(train_small, monkeypatch):
    scripted(monkeypatch, 0.3, 0.2, 0.5, 0.4)
    rows = train_small(epochs=4, recipe_args=WATCHED, batch_size=25, lr=0.01).history
    wrong = [row["diagnosis"]["wrong"] for row in rows]
    robust = [row["diagnosis"]["train_robust"] for row in rows]
    assert wrong == pytest.approx([1 - robust[0]] * 2 + [1 - robust[2]] * 2)
    assert robust[0] != robust[1]


# a run that ends by itself


def test_a_run_that_memorises_ends(overfitted, capfd):
    settings, result = overfitted
    rows = result.history
    last, (event,) = rows[-1], rows[-1]["events"]
    assert len(rows) < 40 and was_stopped(rows) and not any("events" in row for row in rows[:-1])
    assert event["kind"] == ROBUST_OVERFITTING and event["answer"] == "stop" and event["epoch"] == len(rows)
    assert event["best_epoch"] == json.loads((result.output / "best/model.json").read_text())["epoch"]
    margin = 2 * (event["best"] * (1 - event["best"]) / 600) ** 0.5
    assert all(event["best"] - row["val_robust"] > margin - 1e-3 for row in rows[-4:])
    # it is memory: the wrong labels are learned, and training images are held the better
    then = rows[event["best_epoch"] - 1]["diagnosis"]
    assert last["diagnosis"]["train_robust"] > then["train_robust"]
    assert last["diagnosis"]["noisy_given"] > then["noisy_given"]
    assert last["diagnosis"]["g_wrong"] > last["diagnosis"]["g_right"]
    again = timm_robust.train(**settings, resume=True)
    assert again.history == rows, "there is nothing to go on with"
    assert "robust overfitting" not in capfd.readouterr().err


def scripted(monkeypatch, *robust):
    values, original = iter(robust), Engine._check
    monkeypatch.setattr(Engine, "_check", lambda self: {**original(self), "val_clean": 0.9, "val_robust": next(values)})


def stopping(train_small, epochs, method="fgsm-rs", **settings):
    recipe = {"stop_on_overfitting": 2, "check_attack": "pgd-1-1"}
    return train_small(method, epochs=epochs, recipe_args=recipe, **settings)


def test_a_run_ends_after_so_many_epochs_in_a_row(train_small, monkeypatch, capfd):
    scripted(monkeypatch, 0.8, 0.5, 0.79, 0.5, 0.5, 0.9)
    result = stopping(train_small, 6)
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5]
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: robust overfitting")]
    assert told == [
        "warning: robust overfitting: robust accuracy on validation images was 80.0% in epoch 1 and has been below "
        "that by more than 2 standard errors for 2 epochs; training ends after epoch 5, best/ keeps the best epoch"
    ]
    assert json.loads((result.output / "best/model.json").read_text())["epoch"] == 1
    assert json.loads((result.output / "last/model.json").read_text())["epoch"] == 5


def test_standard_training_has_nothing_to_lose(train_small, monkeypatch):
    scripted(monkeypatch, 0.8, 0.1, 0.1, 0.1)
    assert len(stopping(train_small, 4, "standard").history) == 4


def test_epochs_in_the_middle_of_a_cycle_do_not_count(train_small, monkeypatch):
    """Those that a method never offers as the best: an easy stage, after which robust accuracy comes back."""
    scripted(monkeypatch, 0.8, 0.1, 0.1, 0.8, 0.1, 0.1)
    monkeypatch.setattr(FGSMRS, "may_be_best", lambda self, epoch: epoch % 3 == 0)
    assert len(stopping(train_small, 6).history) == 6
