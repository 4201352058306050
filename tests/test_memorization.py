"""Robust overfitting: what is measured, label noise, a run that ends by itself, and the page about runs."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm_robust_plugins.fgsm_rs.fgsm_rs import FGSMRS
from torch import nn

import timm_robust
from tests.conftest import SMALL
from timm_robust.cli import main
from timm_robust.data import load_data, make_eval_loader, some, with_label_noise
from timm_robust.data.noise import describe_noise, redrawn
from timm_robust.errors import UserError
from timm_robust.recipes.recipe import Recipe
from timm_robust.report import Comparison
from timm_robust.report.curves import first_collapse
from timm_robust.report.page import make_report, page
from timm_robust.report.panels import draw_panels, panels_of
from timm_robust.runs.finished import FinishedRun
from timm_robust.runs.history import ROBUST_OVERFITTING, best_and_last, overfitting_line, was_stopped
from timm_robust.training.engine import Engine
from timm_robust.training.monitors.robust_overfitting import (
    RobustOverfittingMonitor,
    calibration_error,
    entropies,
    fallen,
    gradient_norms,
)

WATCHED = {"diagnose": 40, "check_attack": "pgd-1-1"}


def weights(result, name="last"):
    return load_file(result.output / name / "model.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def timeless(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def undiagnosed(rows):
    return [{k: v for k, v in row.items() if k != "diagnosis"} for row in timeless(rows)]


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


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


def seen(*robust, clean=0.9):
    return [
        {"epoch": i, "val_clean": clean, "val_robust": value, "best": value == max(robust[:i])}
        for i, value in enumerate(robust, 1)
    ]


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
    found, best = fallen(seen(*robust), n, learned=0.2)
    assert found == count and best["epoch"] == epoch


def test_what_names_one_class_has_no_robustness_to_lose():
    rows = [*seen(0.15, clean=0.15), *seen(0.0, 0.02, 0.3, 0.1)]
    assert [fallen(rows[:i], 400, learned=0.2)[0] for i in range(1, 6)] == [0, 0, 0, 0, 1]
    assert fallen(rows[:1], 400, learned=0.2)[1] is None


# label noise


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 1.0])
def test_redrawn_labels(share):
    labels = np.arange(20_000) % 10
    noisy, drawn = redrawn(labels, 10, share, seed=3)
    assert drawn.sum() == round(share * 20_000) and noisy.dtype == np.int64
    assert (noisy[~drawn] == labels[~drawn]).all()
    assert (noisy != labels).mean() == pytest.approx(share * 0.9, abs=0.01)
    if share:  # over all classes, the true one too, wherever they lie
        assert np.allclose(np.bincount(noisy[drawn], minlength=10) / drawn.sum(), 0.1, atol=0.02)
        assert (noisy != labels)[drawn].mean() == pytest.approx(0.9, abs=0.02)
        assert drawn[:10_000].mean() == pytest.approx(share, abs=0.02)
    again, mask = redrawn(labels, 10, share, seed=3)
    assert (again == noisy).all() and (mask == drawn).all()
    assert share in (0.0, 1.0) or (redrawn(labels, 10, share, seed=4)[1] != drawn).any()


def test_redrawn_labels_do_not_move_between_releases():
    noisy, drawn = redrawn(np.zeros(8, dtype=np.int64), 10, 0.5, seed=0)
    assert (noisy.tolist(), drawn.nonzero()[0].tolist()) == ([0, 1, 0, 6, 0, 0, 5, 8], [1, 3, 6, 7])


def test_noise_is_on_training_labels_only(few_digits):
    bundle = load_data(few_digits)
    noisy = with_label_noise(bundle, 0.4, seed=0)
    assert noisy.val is bundle.val and noisy.test is bundle.test and noisy.train.pixels is bundle.train.pixels
    assert (noisy.train.true_labels == bundle.train.labels).all()
    assert with_label_noise(bundle, 0.0, seed=0) is bundle
    wrong = (noisy.train.labels != bundle.train.labels).sum()
    told = describe_noise(noisy, 0.4)
    assert told.startswith(f"label noise 0.4: {wrong} of 270 training labels are wrong, ") and "expected 36.0%" in told


def test_a_run_learns_the_noisy_labels(train_small, few_digits, capfd, monkeypatch):
    targets = {}

    def kept(self, batch, perturbed, output):
        targets.update(zip(batch.index.tolist(), batch.targets.tolist(), strict=True))

    monkeypatch.setattr(FGSMRS, "commit", kept)
    recipe = {"label_noise": 0.4, "check_attack": "pgd-1-1"}
    result = train_small(epochs=1, recipe_args=recipe, seed=5, quiet=False)
    assert "label noise 0.4: " in capfd.readouterr().err
    assert "diagnosis" not in result.history[0]
    assert json.loads((result.output / "manifest.json").read_text())["recipe"]["label_noise"] == 0.4
    true = load_data(few_digits, seed=5).train.labels
    assert [targets[i] for i in range(270)] == redrawn(true, 10, 0.4, 5)[0].tolist()


def test_the_share_is_checked(train_small):
    with pytest.raises(UserError, match=r"'label_noise' is 1\.5: expected 0 to 1"):
        train_small(recipe_args={"label_noise": 1.5})


# the diagnosis


@pytest.fixture
def engines(monkeypatch):
    """Every engine that the test makes."""
    made, original = [], Engine.__init__

    def kept(self, job):
        original(self, job)
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", kept)
    return made


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
    engine.diagnosis.close([row], torch.arange(10))
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
        original(self, clip)

    monkeypatch.setattr(Engine, "_update", measured)
    rows = train_small(recipe_args={**WATCHED, "clip_grad": clip}).history
    for row, part in zip(rows, (norms[:6], norms[6:]), strict=True):
        assert row["diagnosis"]["gradient_norm"] == pytest.approx(np.mean(part), rel=1e-4)


def test_steps_that_overflowed_are_left_out():
    diagnosis = RobustOverfittingMonitor(SimpleNamespace(device="cpu"), Recipe(diagnose=1))
    for norm in (3.0, float("inf"), float("nan"), 5.0):
        diagnosis.add(torch.tensor(norm))
    assert diagnosis._norms.tolist() == [8.0, 2.0]
    silent = RobustOverfittingMonitor(SimpleNamespace(device="cpu"), Recipe())
    silent.add(torch.tensor(3.0))
    assert not silent._norms.any()


def test_refined_labels_are_seen(train_small):
    args = {"steps": 1, "start": 0, "alpha": 0.1, "adv_weight": 1.0}
    rows = train_small("sglr", method_args=args, recipe_args={**WATCHED, "label_noise": 0.4}, epochs=3, lr=0.01).history
    last = rows[-1]["diagnosis"]
    assert last["label_entropy"] > 0.1 and last["relabelled"] > 0.1
    assert {"Entropy of the labels, nats", "Labels whose likeliest class changed"} <= {p.title for p in panels_of(rows)}


class Killed(BaseException):
    """Not an Exception, like the end of a process."""


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


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """Settings under which a small network memorises: 100 digits, 60 % of the labels noise, 600 digits to validate."""
    from timm_robust.data import as_tensors

    bundle = load_data("digits")
    images, labels = as_tensors(bundle.train, 700)
    data = {"train": (images[:100], labels[:100]), "val": (images[100:], labels[100:]), "test": as_tensors(bundle.test)}
    settings = {
        "model": "resnet18",
        "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 32, 32, 64]},
        "method": "pgd",
        "method_args": {"steps": 3},
        "data": data,
        "recipe": "digits",
        "epochs": 40,
        "batch_size": 20,
        "lr": 0.005,
        "output": tmp_path_factory.mktemp("overfitted") / "run",
        "test_attacks": [],
        "quiet": True,
        "recipe_args": {
            "augment": "none",
            "schedule": "constant",
            "weight_decay": 0,
            "check_attack": "pgd-2-1",
            "label_noise": 0.6,
            "diagnose": 100,
            "stop_on_overfitting": 4,
        },
    }
    return settings, timm_robust.train(**settings)


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


def test_a_run_says_how_far_it_fell(overfitted):
    _, result = overfitted
    both, rows = best_and_last(result.history), result.history
    best = max(row["epoch"] for row in rows if row["best"])
    assert list(both) == ["validation", "training", "test"]
    assert both["validation"] == (rows[best - 1]["val_robust"], rows[-1]["val_robust"])
    assert both["test"] == tuple(rows[i]["diagnosis"]["test_robust"] for i in (best - 1, -1))
    line = overfitting_line(rows)
    assert line in repr(result) and "\n" not in line
    high, low = both["validation"]
    assert line.startswith(
        f"robust accuracy on validation images: best {high:.1%} (epoch {best}), last {low:.1%} (epoch {len(rows)}), "
        f"gap {100 * (high - low):.1f} points; training images: best "
    )
    assert overfitting_line(seen(0.312, 0.279)) == (
        "robust accuracy on validation images: best 31.2% (epoch 1), last 27.9% (epoch 2), gap 3.3 points"
    )
    assert overfitting_line([]) == "" and "gap 0.0 points" in overfitting_line(seen(0.3))


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


def test_robust_overfitting_is_no_collapse(tmp_path):
    rows = seen(0.5, 0.4, 0.4)
    rows[-1]["events"] = [{"kind": ROBUST_OVERFITTING, "epoch": 3, "answer": "stop", "best": 0.5, "robust": 0.4}]
    run = FinishedRun("pgd", 0, tmp_path, done=True, history=[{**row, "seconds": 1.0} for row in rows])
    run.manifest = {"method_args": {}}
    assert first_collapse(rows) is None and run.events == [] and len(run.fallen) == 1
    assert Comparison(tmp_path, [run]).rows()[0]["happened"] == "robust overfitting, stopped after epoch 3"


# the page


class Tags(HTMLParser):
    """Refuses what would be fetched, and elements that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.names = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        for name, value in attributes:
            assert "//" not in value, f"{tag} {name}={value}"
            assert "href" not in name or value.startswith("#")
            assert name != "src"
            if name == "id":
                self.names.append(value)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(path):
    tags, content = Tags(), path.read_text()
    tags.feed(content)
    assert not tags.open and "http" not in content and "@import" not in content
    assert len(set(tags.names)) == len(tags.names), "no two elements have the same name"
    assert all(ref in tags.names for ref in re.findall(r'(?:href="#|url\(#)([^")]+)', content))
    return tags


def test_the_page(overfitted, train_small, tmp_path):
    _, result = overfitted
    plain = train_small(epochs=1)
    out = timm_robust.make_report([result.output, str(plain.output)], tmp_path / "report.html")
    tags = parsed(out)
    text = " ".join(tags.text)
    assert tags.seen.count("svg") == 3, "all runs together, and each by itself"
    assert overfitting_line(result.history) in text and overfitting_line(plain.history) in text
    for told in ("pgd", "fgsm-rs", "resnet18", "Linf 8/255", f"{len(result.history)} of 40", "gap", "wrong at best"):
        assert told in text
    high, low = best_and_last(result.history)["test"]
    for number in (high, low, high - low):
        assert f"{100 * number:.1f}" in tags.text
    assert f"robust overfitting: the run ended after epoch {len(result.history)}" in text
    titles = [panel.title for panel in panels_of(result.history)]
    assert titles[0] == "Robust accuracy" and len(titles) == 6, "labels that nobody refined have no panel"
    assert [mark[0] for mark in panels_of(result.history)[0].marks] == [ROBUST_OVERFITTING]
    assert [panel.title for panel in panels_of(plain.history)] == ["Robust accuracy"]
    again = make_report(result.output, out)
    assert parsed(again).seen.count("svg") == 1


def test_labels_of_the_pictures_do_not_overlap(overfitted):
    """Names at the right ends, titles, "best": all texts of all panels, by their boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found, save = [], Figure.savefig

    def kept(self, *arguments, **settings):
        save(self, *arguments, **settings)
        renderer = FigureCanvasAgg(self).get_renderer()
        for axes in self.axes:
            texts = [*axes.texts, axes._left_title, axes.xaxis.label]
            found.extend((text.get_text(), text.get_window_extent(renderer), self.bbox) for text in texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", kept)
        many = {f"a rather long name {i}": [(1, 0.5), (2, 0.5)] for i in range(20)}
        one = panels_of(overfitted[1].history)
        for panels in (one, [type(one[0])("many", many)]):
            found.clear()
            draw_panels(panels, io.BytesIO(), format="png")
            assert len(found) > 20
            for number, (name, box, page) in enumerate(found):
                assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1, name
                for other, place, _ in found[:number]:
                    assert not box.overlaps(place), (name, other)


def a_run(folder, rows, **manifest):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "manifest.json").write_text(json.dumps({"method": "pgd", "recipe": {"epochs": 9}, **manifest}))
    return folder


def test_odd_names_and_collapses(tmp_path):
    rows = seen(0.4, 0.0)
    rows[0]["events"] = [{"epoch": 2, "step": 0, "answer": "stop", "seen_on": "validation", "robust": 0, "best": 0.4}]
    odd = a_run(tmp_path / "a $x$ <b> & \"c'", rows, modifiers={"swa": {}}, data={"name": "<i>"})
    other = a_run(tmp_path / "d", seen(0.4))
    tags = parsed(make_report([odd, other], tmp_path / "report.html"))
    text = " ".join(tags.text)
    assert "a $x$ <b> & \"c'" in tags.text and "<i>" in tags.text and "pgd with swa" in tags.text
    assert "catastrophic overfitting in epoch 2: robust accuracy on validation images fell from 40.0% to 0.0%" in text
    twice = a_run(tmp_path / "report.html.d", []).parent / "e"
    twice.mkdir()
    same = a_run(twice / "d", seen(0.3))
    runs = [FinishedRun("", 0, folder) for folder in (other, same)]
    for run in runs:
        run.read(())
    assert str(other) in page(runs) and str(same) in page(runs), "equal names are told apart"


@pytest.mark.parametrize(
    ("runs", "out", "sentence"),
    [
        ([], "r.html", "pass at least one run"),
        (["nothing"], "r.html", "run '.*nothing' does not exist"),
        (["empty"], "r.html", "empty holds no run: metrics.jsonl or manifest.json is missing, empty or damaged"),
        (["begun"], "r.html", "begun holds no run"),
        (["damaged"], "r.html", "damaged holds no run"),
        (["strange"], "r.html", "strange holds no run"),
        (["good", "nothing"], "r.html", "does not exist"),
        (["good"], "no/r.html", "the folder of the report .* does not exist: make it first"),
        (["good"], "good", "the report cannot be written to .*: Is a directory"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, capsys, runs, out, sentence):
    (tmp_path / "empty").mkdir()
    a_run(tmp_path / "begun", [])
    (a_run(tmp_path / "damaged", seen(0.3)) / "metrics.jsonl").write_text("{")
    a_run(tmp_path / "strange", [{"loss": 1}])
    a_run(tmp_path / "good", seen(0.3))
    folders = [tmp_path / run for run in runs]
    with pytest.raises(UserError, match=sentence):
        make_report(folders, tmp_path / out)
    monkeypatch.setattr(sys, "argv", ["timm-robust", "report", *map(str, folders), "--out", str(tmp_path / out)])
    if runs:
        with pytest.raises(SystemExit) as stop:
            main()
        err = capsys.readouterr().err
        assert stop.value.code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("timm-robust: ")
    assert not (tmp_path / "r.html").exists()


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["timm-robust", *arguments])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code
        return capsys.readouterr()

    kwargs = ["--model-kwargs", f"layers={SMALL['layers']}", f"channels={SMALL['channels']}"]
    settings = ["--set", "label_noise=0.5", "diagnose=10", "check_attack=pgd-1", "--test-attack", "none"]
    out, err = call("train", "--method", "fgsm", *kwargs, "--epochs", "1", *settings, "--output", "run")
    assert "label noise 0.5: " in err and "(expected 45.0%" in err
    assert "robust accuracy on validation images: best " in out and "; test images: best " in out
    out, _ = call("report", "run")
    assert out == "report: report.html\n" and parsed(tmp_path / "report.html")
