"""All callbacks of a run, told of each event in one order; keeps what a user's callback raises from being swallowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor

from timm_robust.errors import RunFailed, UserError, unknown
from timm_robust.training.monitors.base import EVENTS, CallbackContext, Request, Step, StopTraining


def require_callback(given: object) -> None:
    """Refuses what cannot serve as a callback.

    Raises:
        UserError: a class in place of an object, no event among its methods, or a misspelt one.
    """
    if isinstance(given, type):
        raise UserError(f"callback {given.__name__} is a class: expected an object, such as {given.__name__}()")
    name = type(given).__name__
    events = [event for event in dir(given) if event.startswith("on_")]
    for event in events:
        if event not in EVENTS:
            raise unknown(f"event of callback {name}", event, EVENTS)
    if not events:
        raise UserError(f"callback {name} has no event: expected some of the methods {', '.join(EVENTS)}")


class Monitors:
    """The callbacks of a run by name.

    Args:
        context: what they may know of the run.
        own: monitors that ship, and the plugins' observers.
        callbacks: the user's; any object with some of the methods of `Callback`.

    Attributes:
        wants_gradient_norm: whether one of them needs the norm of the gradient.
    """

    def __init__(self, context: CallbackContext, own: Mapping[str, object], callbacks: Sequence[object] = ()) -> None:
        self._context = context
        named: dict[str, object] = {}
        for callback in callbacks:
            require_callback(callback)
            named[_free_name(f"callback {type(callback).__name__}", named)] = callback
        self._all = {**own, **named}
        self._methods = {event: self._of(event, named) for event in (*EVENTS, "state_dict", "load_state_dict")}
        self.wants_gradient_norm = any(getattr(one, "wants_gradient_norm", False) for one in self._all.values())

    def __getitem__(self, name: str) -> Any:
        return self._all[name]

    def _of(self, event: str, users: Mapping[str, object]) -> dict[str, Callable[..., Any]]:
        """The method for an event of each callback that has one, by name."""
        found = {name: getattr(one, event) for name, one in self._all.items() if hasattr(one, event)}
        return {
            name: partial(_call, name, event, method, self._context) if name in users else method
            for name, method in found.items()
        }

    def _tell(self, event: str, *arguments: Any) -> None:
        for method in self._methods[event].values():
            method(*arguments)

    def on_run_start(self) -> None:
        self._tell("on_run_start", self._context)

    def on_epoch_start(self, epoch: int) -> None:
        self._tell("on_epoch_start", epoch)

    def on_step(self, step: Step) -> None:
        self._tell("on_step", step)

    def on_epoch_end(self, row: dict[str, Any]) -> list[StopTraining]:
        """Tells all of them of a trained and checked epoch; returns the requests to stop once it is saved."""
        requests = []
        for method in self._methods["on_epoch_end"].values():
            try:
                method(row)
            except StopTraining as request:
                if not request.keep_epoch:
                    raise
                requests.append(request.with_traceback(None))  # which would hold this list, and the context with it
        return requests

    def on_epoch_saved(self, row: Mapping[str, Any]) -> None:
        self._tell("on_epoch_saved", row)

    def on_run_end(self, rows: list[dict[str, Any]]) -> None:
        self._tell("on_run_end", rows)

    def on_exit(self) -> None:
        with ExitStack() as stack:  # all of them, whatever one raises
            for method in reversed(self._methods["on_exit"].values()):
                stack.callback(method)

    def state_dict(self) -> dict[str, Any]:
        """State by name of those that have some.

        Raises:
            RunFailed: what a user's callback returned could not be read back.
        """
        return {name: state for name, method in self._methods["state_dict"].items() if (state := method())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores those that were there when the state was saved; a resumed run may have other callbacks."""
        for name, method in self._methods["load_state_dict"].items():
            if name in state:
                method(state[name])


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name} {number}"
    return free


def _call(name: str, event: str, method: Callable[..., Any], context: CallbackContext, *arguments: Any) -> Any:
    """Calls a user's callback; what it raises ends the run with a sentence that names it."""
    try:
        answer = method(*arguments)
    except (Request, RunFailed):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise RunFailed(f"{name} failed in {event}: {said}; {context.kept()}") from error
    if event == "on_epoch_end":
        _require_json(name, *arguments)
    if event == "state_dict" and not _is_plain(answer):
        raise RunFailed(
            f"{name} returned a state that cannot be resumed from: expected tensors and plain values; {context.kept()}"
        )
    return answer


def _require_json(name: str, row: dict[str, Any]) -> None:
    try:
        json.dumps(row)
    except (TypeError, ValueError) as error:
        raise RunFailed(
            f"{name} added to the row of epoch {row['epoch']} what metrics.jsonl cannot hold: {error}"
        ) from error


def _is_plain(value: Any) -> bool:
    """Whether a value is read back without unpickling code."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor)
