"""The plugins' observers as one callback of a run, shielded so that they cannot break it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from timm_robust.plugin.errors import PluginFailure

if TYPE_CHECKING:
    from timm_robust.plugin.registry import Plugin
    from timm_robust.training.monitors.base import CallbackContext

log = logging.getLogger(__name__)

Implementations = Callable[[str], Iterable[tuple["Plugin", Any]]]


class PluginCallback:
    """Passes the events of one run on to the hooks that watch it, on the first process only.

    A plugin whose observer raises is switched off for the rest of the run and listed in `failed`, so that a broken
    logger costs nobody a night of training.

    Args:
        implementations: gives the plugins that implement a hook, each with pluggy's record of the function.
        strict: raise what an observer raises instead.
    """

    def __init__(self, implementations: Implementations, *, strict: bool = False) -> None:
        self._implementations = implementations
        self._strict = strict
        self.failed: list[PluginFailure] = []

    def on_run_start(self, context: CallbackContext) -> None:
        self._context = context
        self._tell("timm_robust_run_start", run=context.run)

    def on_epoch_saved(self, row: Mapping[str, Any]) -> None:
        self._tell("timm_robust_epoch_end", run=self._context.run, epoch=row["epoch"] - 1, metrics=row)

    def on_run_end(self, rows: list[dict[str, Any]]) -> None:
        self._tell("timm_robust_run_end", run=self._context.run, result=rows)
        for failure in self.failed:
            self._context.warn(f"observer switched off during the run: {failure}")

    def _tell(self, hook: str, **arguments: Any) -> None:
        if not self._context.is_main:
            return
        off = {failure.plugin for failure in self.failed}
        for plugin, implementation in self._implementations(hook):
            if plugin.name in off:
                continue
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                if self._strict:
                    raise
                failure = plugin.failure("observe", error)
                self.failed.append(failure)
                log.warning("%s (plugin %r is switched off for the rest of the run)", failure, plugin.name)
