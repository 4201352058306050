"""Tells plugins about a run, without letting them break it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from timm_robust.plugin.errors import PluginFailure

if TYPE_CHECKING:
    from timm_robust.defense import TrainContext
    from timm_robust.plugin.manager import PluginManager

log = logging.getLogger(__name__)


class Callbacks:
    """The observers of one run: one method per hook.

    A plugin whose observer raises is switched off for the rest of the run and listed in `failed`, so that a broken
    logger costs nobody a night of training; in strict mode the exception passes.
    """

    def __init__(self, manager: PluginManager) -> None:
        self._manager = manager
        self.failed: list[PluginFailure] = []

    def run_start(self, run: TrainContext) -> None:
        """Before the first epoch."""
        self._tell("timm_robust_run_start", run=run)

    def epoch_end(self, run: TrainContext, epoch: int, metrics: Mapping[str, Any]) -> None:
        """After an epoch and its check."""
        self._tell("timm_robust_epoch_end", run=run, epoch=epoch, metrics=metrics)

    def run_end(self, run: TrainContext, result: Any) -> None:
        """After the last epoch."""
        self._tell("timm_robust_run_end", run=run, result=result)

    def _tell(self, hook: str, **arguments: Any) -> None:
        off = {failure.plugin for failure in self.failed}
        for plugin, implementation in self._manager.implementations(hook):
            if plugin.name in off:
                continue
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                if self._manager.strict:
                    raise
                failure = plugin.failure("observe", error)
                self.failed.append(failure)
                log.warning("%s (plugin %r is switched off for the rest of the run)", failure, plugin.name)
