"""Callbacks of a user's: what they hear, what they may ask for, and that their mistakes end the run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import timm_robust
from tests.support import equal, timeless, weights
from timm_robust.errors import RunFailed, UserError
from timm_robust.training.monitors.base import EVENTS, MAX_ROLLBACKS, Step


class Recorder(timm_robust.Callback):
    """Hears everything."""

    def __init__(self):
        self.heard = []

    def on_run_start(self, context):
        super().on_run_start(context)
        self.heard.append("start")

    def on_epoch_start(self, epoch):
        self.heard.append(f"epoch {epoch}")

    def on_step(self, step):
        assert isinstance(step, Step) and step.steps == 6 and step.loss_sum.isfinite()
        assert step.images == min(50 * step.number, 270) and step.gradient_norm is None
        self.heard.append(step.number)

    def on_epoch_end(self, row):
        assert not (self.context.run.output / "last").exists() or row["epoch"] > 1
        self.heard.append(f"end {row['epoch']} {row['best']}")

    def on_epoch_saved(self, row):
        assert json.loads((self.context.run.output / "last/model.json").read_text())["epoch"] == row["epoch"]
        self.heard.append(f"saved {row['epoch']}")

    def on_run_end(self, rows):
        self.heard.append(f"run end {len(rows)}")

    def on_exit(self):
        self.heard.append("exit")

    def state_dict(self):
        return {"heard": len(self.heard)}

    def load_state_dict(self, state):
        self.heard.append(state)


STEPS = [1, 2, 3, 4, 5, 6]


def test_events_come_in_order_and_a_resumed_run_gets_the_state_back(train_small):
    first, second = Recorder(), Recorder()
    result = train_small(epochs=2, callbacks=[first])
    best = ["end 1 True", f"end 2 {result.history[1]['best']}"]
    assert first.heard == [
        *("start", "epoch 0", *STEPS, best[0], "saved 1", "epoch 1", *STEPS, best[1], "saved 2"),
        *("run end 2", "exit"),
    ]
    train_small(epochs=2, callbacks=[second], resume=True)
    assert second.heard == [{"heard": len(first.heard) - 3}, "start", "run end 2", "exit"]
    train_small(epochs=2, resume=True)  # callbacks are no part of what has to be the same


def test_a_watched_run_has_the_same_weights(train_small):
    class Measures:
        """No subclass: any object with some of the events."""

        wants_gradient_norm = True

        def on_run_start(self, context):
            self.context, self.found, self.norms = context, [], []

        def on_step(self, step):
            self.found.append(self.context.evaluate("pgd-2-1", [step.batch]))
            self.norms.append(step.gradient_norm.item())

    callback = Measures()
    plain, watched = train_small(output="plain"), train_small(output="watched", callbacks=[callback])
    assert equal(weights(plain), weights(watched)) and timeless(plain.history) == timeless(watched.history)
    assert all(0 <= value <= 1 for value in callback.found) and all(norm > 0 for norm in callback.norms)


def test_entries_of_a_callback_are_in_the_row(train_small):
    result = train_small(epochs=1, callbacks=[SimpleNamespace(on_epoch_end=lambda row: row.update(mine=3))])
    assert result.history[0]["mine"] == json.loads((result.output / "metrics.jsonl").read_text())["mine"] == 3


class Asks:
    """Raises its request at an event of the second epoch."""

    def __init__(self, event, request):
        self.requests = [request]
        setattr(self, event, self._ask)

    def _ask(self, given):
        epoch = given["epoch"] if isinstance(given, dict) else given.epoch + 1
        if epoch == 2 and self.requests:
            raise self.requests.pop()


@pytest.mark.parametrize(
    ("event", "settings", "kept"),
    [("on_step", {}, 1), ("on_epoch_end", {}, 2), ("on_epoch_end", {"keep_epoch": False}, 1)],
)
def test_a_callback_stops_the_run(train_small, event, settings, kept):
    request = timm_robust.StopTraining("robust enough", **settings)
    result = train_small(epochs=4, callbacks=[Asks(event, request)])
    assert len(result.history) == kept
    entry = {"kind": "callback", "epoch": 2, "reason": "robust enough", "answer": "stop"}
    assert result.history[-1]["events"] == [entry]
    assert json.loads((result.output / "last/model.json").read_text())["epoch"] == kept
    assert train_small(epochs=4, resume=True).history == result.history, "there is nothing to go on with"


@pytest.mark.parametrize("event", ["on_step", "on_epoch_end"])
def test_a_callback_rolls_the_run_back(train_small, event):
    plain = train_small(output="plain", epochs=3)
    asks = Asks(event, timm_robust.Rollback("again", extra_steps=1))
    rows = train_small(epochs=3, callbacks=[asks]).history
    assert timeless(rows[:1]) == timeless(plain.history[:1]) and len(rows) == 3
    assert rows[1]["events"] == [{"kind": "callback", "epoch": 2, "reason": "again", "answer": "restore"}]
    assert [row["passes"] for row in rows] == [2.0, 3.0, 3.0], "with the attack step that was added"


def test_a_run_that_is_rolled_back_for_ever_stops(train_small):
    def again(row):
        if row["epoch"] == 2:
            raise timm_robust.Rollback("again")

    (row,) = train_small(epochs=3, callbacks=[SimpleNamespace(on_epoch_end=again)]).history
    assert [event["answer"] for event in row["events"]] == ["restore"] * MAX_ROLLBACKS + ["stop"]


@pytest.mark.parametrize("request_", [timm_robust.StopTraining("enough"), timm_robust.Rollback("again")])
def test_the_first_epoch_leaves_nothing_to_go_back_to(train_small, request_):
    def ask(step):
        raise request_

    with pytest.raises(RunFailed, match=r"first epoch.*: enough|no epoch to go back to: again"):
        train_small(callbacks=[SimpleNamespace(on_step=ask)])


class Breaks(timm_robust.Callback):
    def __init__(self, event):
        self.event, self.closed = event, False
        setattr(self, event, self._break)

    def _break(self, *given):
        raise UserError("my disk is full")

    def on_exit(self):
        self.closed = True


@pytest.mark.parametrize("event", [event for event in EVENTS if event != "on_exit"])
def test_a_callback_that_raises_ends_the_run(train_small, tmp_path, event):
    callback = Breaks(event)
    kept = "run/last holds epoch [12]" if event in ("on_epoch_saved", "on_run_end") else "no epoch was finished before"
    with pytest.raises(
        RunFailed, match=f"callback Breaks failed in {event}: UserError: my disk is full; .*{kept}"
    ) as failure:
        train_small(epochs=2, callbacks=[callback])
    assert callback.closed and isinstance(failure.value.__cause__, UserError)
    assert (tmp_path / "run/manifest.json").is_file(), "the run is there, to be resumed"
    resumed = train_small(epochs=2, resume=True)
    assert len(resumed.history) == 2


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (SimpleNamespace(state_dict=lambda: {"when": object()}, on_exit=lambda: None), "state that cannot be resumed"),
        (SimpleNamespace(on_epoch_end=lambda row: row.update(mine=torch.ones(1))), "row of epoch 1 what metrics.jsonl"),
    ],
)
def test_what_cannot_be_saved_ends_the_run_at_once(train_small, callback, message):
    with pytest.raises(RunFailed, match=message):
        train_small(epochs=2, callbacks=[callback])


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Recorder, r"callback Recorder is a class: expected an object, such as Recorder\(\)"),
        (print, "has no event: expected some of the methods on_run_start, "),
        (SimpleNamespace(on_epoch=print), "unknown event of callback SimpleNamespace 'on_epoch': did you mean on_ep"),
    ],
)
def test_what_is_no_callback_is_refused_before_training(train_small, tmp_path, callback, message):
    with pytest.raises(UserError, match=message):
        train_small(callbacks=[callback])
    assert not (tmp_path / "run").exists()


def test_two_callbacks_of_one_class_keep_their_own_state(train_small):
    class Counter:
        def __init__(self, start):
            self.count = start

        def on_epoch_end(self, row):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    train_small(epochs=1, callbacks=[Counter(0), Counter(10)])
    resumed = [Counter(0), Counter(0), Counter(5)]
    train_small(epochs=1, callbacks=resumed, resume=True)
    assert [one.count for one in resumed] == [1, 11, 5]
