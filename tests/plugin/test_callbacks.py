"""Callbacks of plugins on a run: what they hear, and that their failures are shielded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugin.conftest import Install
from tests.support import discover
from timm_robust.plugin import get_manager
from timm_robust.plugin.manager import STRICT, PluginManager

OBSERVERS = """
@hookimpl
def timm_robust_run_start(run):
    run.append("foo starts")

@hookimpl
def timm_robust_epoch_end(epoch, run):
    run.append(f"foo {epoch}")
    if epoch == 1:
        raise OSError("disk full")

@hookimpl
def timm_robust_run_end(result, run):
    run.append(f"foo {result}")
"""


def observe(manager: PluginManager, is_main: bool = True) -> tuple[list[str], Any]:
    """What a run of three epochs hears; the run is the list that observers write to."""
    heard: Any = []
    observers: Any = manager.observers()
    observers.on_run_start(SimpleNamespace(run=heard, is_main=is_main, warn=lambda text: None))
    for epoch in (1, 2, 3):
        observers.on_epoch_saved({"epoch": epoch, "loss": 1.0})
    observers.on_run_end("done")
    return heard, observers


def test_observers_are_shielded(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(OBSERVERS)
    install(OBSERVERS.replace("epoch == 1", "False").replace("foo", "bar"), distribution="timm-robust-bar", entry="bar")
    manager = discover()
    assert {row["kind"] for row in manager.report()} == {"observer"}
    heard, observers = observe(manager)
    assert heard == ["bar starts", "foo starts", "bar 0", "foo 0", "bar 1", "foo 1", "bar 2", "bar done"]
    (failure,) = observers.failed
    assert str(failure) == "timm-robust-foo 0.2 failed at observe: OSError: disk full"
    assert [record.getMessage() for record in caplog.records] == [
        f"{failure} (plugin 'foo' is switched off for the rest of the run)"
    ]
    # the next run hears it again
    assert observe(manager)[0] == heard
    assert observe(manager, is_main=False)[0] == [], "the first process alone"

    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(OSError, match="disk full"):
        observe(discover())


def test_observers_are_told_and_shielded(train_small, capfd):
    from timm_robust.plugin import hookimpl

    class Watcher:
        def __init__(self):
            self.seen = []

        @hookimpl
        def timm_robust_run_start(self, run):
            self.seen.append(("start", run.epochs))

        @hookimpl
        def timm_robust_epoch_end(self, epoch, metrics):
            self.seen.append((epoch, metrics["epoch"]))
            raise RuntimeError("watcher broke")

        @hookimpl
        def timm_robust_run_end(self, result):
            self.seen.append("end")

    watcher = Watcher()
    with get_manager().using(watcher, name="watcher"):
        train_small(epochs=2)
    assert watcher.seen == [("start", 2), (0, 1)]
    assert "watcher broke" in capfd.readouterr().err
