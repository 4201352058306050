"""Catastrophic overfitting: the rule, the monitor that must not disturb, and what a run does about it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import timm_robust
from tests.support import Killed, equal, timeless, weights
from timm_robust.attacks.attacker import Attacker
from timm_robust.errors import UserError
from timm_robust.recipes.recipe import Recipe
from timm_robust.testing import _equal
from timm_robust.threat import make_threat
from timm_robust.training.engine import Engine
from timm_robust.training.monitors import catastrophic_overfitting as overfitting
from timm_robust.training.monitors.base import MAX_ROLLBACKS
from timm_robust.training.monitors.catastrophic_overfitting import (
    COST,
    LEARNED,
    SHARE,
    CatastrophicOverfittingMonitor,
    collapsed,
    gradient_cosine,
)
from timm_robust.training.pass_counter import PassCounter

LINF = make_threat(image_size=8)


def rows_of(result):
    return [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]


# the rule


@pytest.mark.parametrize(
    ("robust", "best", "n", "fgsm", "expected"),
    [
        (0.50, 0.50, 1000, None, False),
        (0.31, 0.50, 1000, None, False),  # 19 points lost, not half
        (0.29, 0.50, 1000, None, True),  # 21 points lost
        (0.00, 0.21, 10, None, True),
        (0.10, 0.19, 1000, None, False),  # 9 points, more than half left
        (0.04, 0.10, 1000, None, True),  # half gone, 6 standard errors
        (0.04, 0.10, 100, None, False),  # half gone, 2 standard errors: nothing more is known
        (0.04, 0.10, 100, 0.20, False),  # FGSM 16 points away
        (0.04, 0.10, 100, 0.30, True),  # FGSM 26 points away
        (0.06, 0.10, 100, 0.90, False),  # a large gap is no event while half is left
        (0.50, 0.50, 100, 0.95, False),
        (0.00, 0.00, 1000, 0.90, False),  # never was robust
        (0.30, 0.00, 1000, 0.90, False),
        (0.00, 0.05, 100, 0.90, True),
    ],
)
def test_collapsed(robust, best, n, fgsm, expected):
    assert collapsed(robust, best, n, fgsm) is expected


# the gradient's cosine


class Gate(nn.Module):
    """Pixels below one half pass no gradient on; smooth above."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(192, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(10 * (images - 0.5).relu().square().flatten(1))


def test_cosine_of_a_linear_network_is_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    images, noise = torch.rand(6, 3, 8, 8), torch.randn(6, 3, 8, 8)
    assert gradient_cosine(Attacker(model, LINF), images, torch.arange(6) % 2, noise) == pytest.approx(1.0, abs=1e-6)


def test_cosine_leaves_out_samples_without_a_gradient():
    """Against the gradient by hand: with p the predicted probabilities, (p - y) W f'(x)."""
    model, targets = Gate(), torch.arange(6) % 4
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = 0.3 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    images[1], noise[1] = 0.0, 0.0  # zero at both
    images[3], noise[3] = 0.2, 0.5  # zero at the image alone
    matrix, bias = (p.detach().double().numpy() for p in (model.head.weight, model.head.bias))
    both = []
    for points in (images, images + noise):
        passed = np.maximum(points.double().numpy().reshape(6, -1) - 0.5, 0)
        logits = 10 * passed**2 @ matrix.T + bias
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        both.append((p - np.eye(4)[targets]) @ matrix * 20 * passed)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*both, strict=True) if a.any() and b.any()]
    assert len(cosines) == 4
    assert gradient_cosine(Attacker(model, LINF), images, targets, noise) == pytest.approx(np.mean(cosines), rel=1e-4)
    assert np.mean(cosines) < 0.95
    nothing = torch.zeros(6, 3, 8, 8)
    assert gradient_cosine(Attacker(model, LINF), nothing, targets, nothing) == 0.0


def test_cosine_falls_with_the_noise(small_model):
    images, targets = torch.rand(8, 3, 8, 8), torch.arange(8)
    noise = torch.randn(images.shape)
    cosines = [gradient_cosine(Attacker(small_model, LINF), images, targets, s * noise) for s in (1e-4, 0.03, 0.3)]
    assert cosines[0] > 0.99 and cosines == sorted(cosines, reverse=True)
    assert small_model.training and all(p.requires_grad and p.grad is None for p in small_model.parameters())


# the monitor


def test_a_look_disturbs_nothing(train_small, engines):
    train_small(epochs=1, recipe_args={"watch_examples": 20, "ema": 0.9, "check_attack": "pgd-1-1"})
    engine = engines[-1]
    model = engine.unwrapped_model.train()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    frozen = next(model.parameters()).requires_grad_(False)
    for network in (model, engine.eval_model):
        assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())

    def everything():
        networks = (model, engine.eval_model)
        modes = [m.training for network in networks for m in network.modules()]
        wanting = [p.requires_grad for network in networks for p in network.parameters()]
        tracking = [getattr(m, "track_running_stats", None) for network in networks for m in network.modules()]
        state = [v.clone() for network in networks for v in network.state_dict().values()]
        gradients = [p.grad for p in model.parameters()]
        return modes, wanting, tracking, gradients, state, torch.get_rng_state(), np.random.get_state()[1].copy()

    before = everything()
    line = engine.monitors["catastrophic overfitting"].probe(epoch=0, step=3)
    after = everything()
    assert before[:4] == after[:4]
    assert all(torch.equal(a, b) for a, b in zip(before[4], after[4], strict=True))
    assert torch.equal(before[5], after[5]) and (before[6] == after[6]).all()
    assert not norm.training and not frozen.requires_grad
    assert line.startswith("training images: PGD ")
    (look,) = engine.monitors["catastrophic overfitting"].take()["looks"]
    assert look.keys() == {"step", "clean", "fgsm", "pgd", "cosine"} and look["step"] == 3
    assert 0 <= look["pgd"] <= look["clean"] <= 1 and -1 <= look["cosine"] <= 1
    assert engine.monitors["catastrophic overfitting"].take() == {}


@pytest.mark.parametrize("settings", [{}, {"recipe_args": {"ema": 0.9, "check_attack": "pgd-1-1"}}])
def test_a_watched_run_has_the_same_weights(train_small, settings):
    recipe = settings.get("recipe_args", {"check_attack": "pgd-1-1"})
    plain = train_small(output="plain", recipe_args=recipe)
    watched = train_small(output="watched", recipe_args={**recipe, "watch_every": 1, "watch_examples": 10})
    assert equal(weights(plain), weights(watched))
    assert [[look["step"] for look in row["looks"]] for row in watched.history] == [[1, 2, 3, 4, 5, 6]] * 2
    assert not any("looks" in row for row in plain.history)
    assert rows_of(watched) == watched.history


def test_looks_are_at_the_same_images_without_augmentation(train_small, engines):
    train_small(epochs=1, recipe_args={"watch_examples": 20, "check_attack": "pgd-1-1"})
    watch, split = engines[-1].monitors["catastrophic overfitting"], engines[-1].config.data.train
    clean = split.pixels.permute(0, 3, 1, 2).float() / 255
    places = [(image == clean).flatten(1).all(1).nonzero()[0].item() for image in watch.batch.images]
    assert len(places) == 20 and max(places) - min(places) > 100, "from all over the split"
    assert [split.labels[p] for p in places] == watch.batch.targets.tolist()
    assert watch.batch is watch.batch


@pytest.mark.parametrize(("every", "steps"), [(4, [4]), (3, [3, 6]), (7, [])])
def test_watch_every(train_small, every, steps):
    result = train_small(recipe_args={"watch_every": every, "watch_examples": 5, "check_attack": "pgd-1-1"})
    assert [[look["step"] for look in row.get("looks", [])] for row in result.history] == [steps, steps]


def fake_watch(adversarial: bool = True, **settings) -> CatastrophicOverfittingMonitor:
    watch = CatastrophicOverfittingMonitor(Recipe(**settings))
    watch.on_run_start(SimpleNamespace(defense=SimpleNamespace(adversarial=adversarial), agree=lambda value: value))
    return watch


def test_looks_are_due_while_their_share_allows_it():
    watch, passes, looks = fake_watch(watch_examples=100), 0.0, 0
    for step in range(10_000):
        passes += 256
        if watch.due(step, passes):
            watch.spent, looks = watch.spent + COST * 100, looks + 1
        assert looks * COST * 100 <= SHARE * passes
    assert looks == int(SHARE * passes / (COST * 100)), "and not fewer"
    assert not fake_watch(adversarial=False, watch_every=1).due(1, 1e9)


def test_looks_take_less_than_their_share_of_a_run(train_small, engines, monkeypatch):
    """Counted by a second counter, which nobody pauses."""
    spent, look = [], CatastrophicOverfittingMonitor.probe

    def counted(self, epoch, step):
        counter = PassCounter(self.context.run.unwrapped_model)
        try:
            return look(self, epoch, step)
        finally:
            spent.append(counter.passes)

    monkeypatch.setattr(CatastrophicOverfittingMonitor, "probe", counted)
    recipe = {"watch_examples": 2, "check_attack": "pgd-1-1"}
    result = train_small(epochs=9, recipe_args=recipe)
    counter = engines[-1].counter
    assert counter.passes == pytest.approx(9 * 270 * 2)
    assert len(spent) == sum(len(row.get("looks", [])) for row in result.history)
    assert len(spent) > int(SHARE * counter.passes / (COST * 2)), "most cost less than estimated, so there are more"
    assert all(0 < passes <= COST * 2 for passes in spent), "the estimate is an upper bound"
    assert sum(spent) <= SHARE * counter.passes


def test_the_estimate_of_a_look_is_exact_where_every_image_is_right(train_small, engines, monkeypatch):
    train_small(epochs=1, recipe_args={"watch_examples": 20, "check_attack": "pgd-1-1"})
    watch, model = engines[-1].monitors["catastrophic overfitting"], engines[-1].unwrapped_model
    watch.batch.targets.copy_(model.eval()(watch.batch.images).argmax(1))
    counter = PassCounter(model)
    watch.probe(0, 1)
    assert counter.passes == 20 * COST


def test_accuracy_at_chance_is_no_best(train_small, monkeypatch):
    """What names one class whatever it sees withstands every attack: to leave that state is no collapse."""
    values = iter([(0.15, 0.15), (0.5, 0.0), (0.5, 0.4), (0.1, 0.1)])
    original = Engine._check

    def scripted(self):
        clean, robust = next(values)
        return {**original(self), "val_clean": clean, "val_robust": robust}

    monkeypatch.setattr(Engine, "_check", scripted)
    rows = answered(train_small, "warn", recipe={"check_attack": "pgd-1-1"}).history
    assert [(event["epoch"], event["best"]) for row in rows for event in row.get("events", [])] == [(4, 0.4)]


def test_standard_training_is_not_watched(train_small, monkeypatch):
    monkeypatch.setattr(overfitting, "collapsed", lambda *seen: True)
    rows = train_small("standard", recipe_args={"watch_every": 1, "on_collapse": "stop"}).history
    assert len(rows) == 2 and not any({"looks", "events"} & row.keys() for row in rows)


# events


@pytest.fixture
def collapse(monkeypatch, engines):
    """Makes an epoch one of overfitting, on validation or training images, the first `times` it is trained."""

    def at(epoch: int, *, times: int = 1, on: str = "validation") -> None:
        def rule(robust, best, n, fgsm=None):
            here = on == ("validation" if fgsm is None else "training")
            return here and engines[-1].epoch + 1 == epoch and engines[-1].state.rollbacks < times

        monkeypatch.setattr(overfitting, "collapsed", rule)

    return at


def answered(train_small, answer, output="run", **settings):
    recipe = {"on_collapse": answer, "check_attack": "pgd-2-1", **settings.pop("recipe", {})}
    return train_small(output=output, epochs=settings.pop("epochs", 4), recipe_args=recipe, **settings)


def events_of(rows):
    return {row["epoch"]: row["events"] for row in rows if "events" in row}


def test_warn_changes_nothing_but_the_record(train_small, collapse, engines, capfd):
    plain = answered(train_small, "warn", "plain")
    collapse(3)
    warned = answered(train_small, "warn", "warned")
    assert "catastrophic overfitting in epoch 3: PGD accuracy on validation images fell from" in capfd.readouterr().err
    ((epoch, (event,)),) = events_of(warned.history).items()
    assert epoch == 3 and event["epoch"] == 3 and event["step"] == 0 and event["answer"] == "warn"
    assert event["seen_on"] == "validation" and event["robust"] == round(warned.history[2]["val_robust"], 4)
    labels = engines[-1].config.data.val.labels
    bar = np.bincount(labels).max() / len(labels) + LEARNED
    meant = [row["val_robust"] for row in warned.history[:3] if row["val_clean"] > bar]
    assert event["best"] == round(max(meant, default=0.0), 4), "robust accuracy at chance means nothing"
    assert equal(weights(plain), weights(warned)) and rows_of(warned) == warned.history
    assert not events_of(plain.history)


def test_one_warning_for_a_collapse_that_lasts(train_small, monkeypatch):
    """The next one only after robustness has come back to three quarters of its best."""
    values = iter([0.5, 0.1, 0.0, 0.05, 0.3, 0.1, 0.4, 0.1])
    original = Engine._check

    def scripted(self):
        return {**original(self), "val_clean": 0.9, "val_robust": next(values)}

    monkeypatch.setattr(Engine, "_check", scripted)
    rows = answered(train_small, "warn", epochs=8, recipe={"check_attack": "pgd-1-1"}).history
    assert list(events_of(rows)) == [2, 8], "0.3 is no recovery from 0.5, 0.4 is"
    assert [row["epoch"] for row in rows if row["best"]] == [1]


def test_sound_training_images_do_not_bring_the_warning_back():
    watch = fake_watch()
    told: list[str] = []
    watch.context.warn = told.append
    targets = torch.arange(500) % 10
    for epoch, robust in enumerate((0.4, 0.1, 0.1)):
        watch.judge("validation", targets, 0.9, robust, epoch)
        watch.judge("training", targets, 0.9, 0.5, epoch, step=1)
    assert len(told) == 1 and [event["epoch"] for event in watch.take()["events"]] == [2]


def test_restore_goes_on_from_the_last_sound_epoch(train_small, collapse, engines):
    plain = answered(train_small, "restore", "plain")
    collapse(3)
    restored = answered(train_small, "restore", "restored")
    rows = restored.history
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and rows_of(restored) == rows
    assert timeless(rows[:2]) == timeless(plain.history[:2])
    ((epoch, (event,)),) = events_of(rows).items()
    assert epoch == 3 and event["answer"] == "restore" and event["step"] == 0
    assert rows[2]["train_loss"] != plain.history[2]["train_loss"], "other draws"
    assert not equal(weights(plain), weights(restored))
    assert [row["lr"] for row in rows] == [row["lr"] for row in plain.history], "the schedule went back too"
    assert engines[-1].state.rollbacks == 1 and engines[-1].attacker.extra_steps == 0
    assert [row["passes"] for row in rows] == [2.0] * 4
    assert engines[-1].counter.passes == 4 * 270 * 2, "what was thrown away is not in the run's sum"


def test_escalate_adds_an_attack_step_each_time(train_small, collapse, engines):
    collapse(3, times=2)
    rows = answered(train_small, "escalate").history
    assert [row["passes"] for row in rows] == [2.0, 2.0, 4.0, 4.0]
    assert [event["answer"] for event in events_of(rows)[3]] == ["escalate", "escalate"]
    assert engines[-1].attacker.extra_steps == 2 and engines[-1].checker.extra_steps == 0


def test_stop_ends_early_with_the_best_epoch(train_small, collapse):
    plain = answered(train_small, "stop", "plain")
    collapse(3)
    stopped = answered(train_small, "stop", "stopped")
    assert [row["epoch"] for row in stopped.history] == [1, 2] and rows_of(stopped) == stopped.history
    ((epoch, (event,)),) = events_of(stopped.history).items()
    assert epoch == 2 and event["epoch"] == 3 and event["answer"] == "stop", "written to the last row there is"
    assert timeless(stopped.history[:1]) == timeless(plain.history[:1])
    best = timm_robust.load(stopped.output)
    assert best(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    assert json.loads((stopped.output / "last/model.json").read_text())["epoch"] == 2
    again = answered(train_small, "stop", "stopped", resume=True)
    assert again.history == stopped.history, "there is nothing to go on with"


def test_stop_is_measured_in_the_end(train_small, collapse):
    collapse(2)
    result = answered(train_small, "stop", test_attacks=["clean"])
    assert result.evaluation is not None and len(result.history) == 1


def test_a_run_that_keeps_collapsing_stops(train_small, collapse):
    collapse(2, times=100)
    rows = answered(train_small, "restore", recipe={"check_attack": "pgd-1-1"}).history
    assert len(rows) == 1
    answers = [event["answer"] for event in rows[0]["events"]]
    assert answers == ["restore"] * MAX_ROLLBACKS + ["stop"]


@pytest.mark.parametrize("answer", ["stop", "restore", "escalate"])
def test_the_first_epoch_has_nothing_to_go_back_to(train_small, collapse, answer):
    collapse(1)
    rows = answered(train_small, answer, epochs=2).history
    assert len(rows) == 2
    assert [event["answer"] for event in events_of(rows)[1]] == ["warn"]


@pytest.mark.parametrize("answer", ["stop", "restore", "escalate"])
def test_in_the_middle_of_an_epoch(train_small, collapse, engines, answer):
    collapse(3, on="training")
    recipe = {"watch_every": 4, "watch_examples": 5}
    result = answered(train_small, answer, recipe=recipe, batch_size=40)
    (events,) = events_of(result.history).values()
    assert (events[0]["epoch"], events[0]["step"], events[0]["seen_on"]) == (3, 4, "training")
    assert events[0]["fgsm"] is not None
    assert len(result.history) == (2 if answer == "stop" else 4)
    assert [row["passes"] for row in result.history][2:] == {"stop": [], "restore": [2.0] * 2, "escalate": [3.0] * 2}[
        answer
    ]
    assert rows_of(result) == result.history
    if answer != "stop":
        assert engines[-1].schedule.steps == 4 * 7, "an epoch that was given up leaves no steps behind"


def killed_when(monkeypatch, epoch: int, returns: int):
    """Ends the process, as it were, at the start of an epoch; returns what undoes that."""
    original = Engine._train_epoch

    def killed(self):
        if (self.epoch + 1, self.state.rollbacks) == (epoch, returns):
            self.defense.perturb(next(iter(self.loader.epoch(1))))  # some draws are already made
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed)
    return lambda: monkeypatch.setattr(Engine, "_train_epoch", original)


@pytest.mark.parametrize(
    ("method", "options"),
    [("atas", {"warmup_epochs": 1}), ("free", {"replays": 2}), ("fgsm-mep", {}), ("gat", {}), ("moat", {})],
)
def test_methods_with_a_state_go_back_with_the_run(train_small, collapse, monkeypatch, method, options):
    """As if a new process had read the last sound epoch: nothing of the one that was given up stays in any table."""
    settings = {"method": method, "method_args": options, "epochs": 3}
    collapse(3)
    back = answered(train_small, "restore", "back", **settings)
    undo = killed_when(monkeypatch, 3, 0)
    with pytest.raises(Killed):
        answered(train_small, "restore", "read", **settings)
    undo()
    original = Engine._resume

    def read(self):
        original(self)
        self.state.rollbacks = 1  # the same draws

    monkeypatch.setattr(Engine, "_resume", read)
    again = answered(train_small, "restore", "read", resume=True, **settings)
    assert len(events_of(back.history)) == 1 and not events_of(again.history)
    assert equal(weights(back), weights(again))
    states = [torch.load(run.output / "last/state.pt", weights_only=True)["defense"] for run in (back, again)]
    assert states[0] and _equal(*states)


@pytest.mark.parametrize(
    ("answer", "method", "killed"),
    [
        ("restore", "fgsm-rs", (4, 1)),
        ("restore", "atas", (3, 1)),
        ("escalate", "fgsm-rs", (4, 1)),
    ],
)
def test_resumed_after_an_event_to_the_same_bits(train_small, collapse, monkeypatch, answer, method, killed):
    """Killed in the epoch after the event's, or before the event's was done anew: then the event comes again."""
    collapse(3)
    whole = answered(train_small, answer, "whole", method=method)
    undo = killed_when(monkeypatch, *killed)
    with pytest.raises(Killed):
        answered(train_small, answer, "killed", method=method)
    undo()
    resumed = answered(train_small, answer, "killed", method=method, resume=True)
    assert equal(weights(whole), weights(resumed)) and equal(weights(whole, "best"), weights(resumed, "best"))
    assert timeless(whole.history) == timeless(resumed.history)


def test_answers_are_checked(train_small):
    with pytest.raises(UserError, match="'on_collapse' is 'panic'"):
        train_small(recipe_args={"on_collapse": "panic"})


def test_an_event_reads_well():
    event = overfitting.CatastrophicOverfittingEvent(3, 40, "training", 0.012, 0.4567, 0.91, "stop")
    assert str(event) == (
        "catastrophic overfitting in epoch 3, step 40: PGD accuracy on training images fell from 45.7% to 1.2% "
        "while FGSM accuracy is 91.0%"
    )
    assert event.to_dict()["answer"] == "stop"
