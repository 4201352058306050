"""Errors of plugins: name conflicts, and failures that are recorded instead of raised."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from timm_robust.errors import PluginError, UserError


class PluginConflict(PluginError, UserError):
    """One name claimed by two plugins; the user has to block one of them."""


@dataclass(frozen=True)
class PluginFailure:
    """A plugin that could not be used, and why.

    Attributes:
        plugin: name of the entry point.
        distribution, version: installed package that it comes from; empty for a plugin registered by hand.
        stage: "import", "register", "collect" (asking for its specs), "load" (importing what a spec names), "check"
            (recipe settings of a spec) or "observe" (a call during a run).
        error: one line.
        trace: whole traceback as text.
    """

    plugin: str
    distribution: str
    version: str
    stage: str
    error: str
    trace: str

    @classmethod
    def of(cls, plugin: str, distribution: str, version: str, stage: str, error: BaseException) -> PluginFailure:
        """Failure for an exception."""
        text = " ".join(str(error).split())
        if not isinstance(error, PluginError):  # those are sentences already
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        trace = "".join(traceback.format_exception(error))
        return cls(plugin, distribution, version, stage, text, trace)

    def __str__(self) -> str:
        return f"{provider(self.plugin, self.distribution, self.version)} failed at {self.stage}: {self.error}"


def provider(plugin: str, distribution: str, version: str) -> str:
    """Origin of a plugin in messages: `timm-robust-foo 0.2`, or `plugin 'foo'` when it is not installed."""
    return f"{distribution} {version}".strip() if distribution else f"plugin {plugin!r}"
