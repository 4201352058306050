"""Mistakes of the user: one sentence that says what, which value, what was expected, and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend; the command line prints the sentence and exits with status 2."""


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, wanted: str, package: str, extra: str) -> None:
        super().__init__(f"{wanted} needs {package}, which is not installed: pip install 'timm-robust[{extra}]'")


class RunFailed(Exception):
    """Training cannot go on; the message says why and what is kept. The command line exits with status 1."""


def nearest(value: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` choices most like `value`, best first; empty when nothing is close."""
    known = list(choices)
    by_lower = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(value.lower(), list(by_lower), n=n, cutoff=0.5)
    return [by_lower[name] for name in close]


def unknown(kind: str, value: str, choices: Iterable[str], hint: str = "") -> UserError:
    """`unknown method 'tradez': did you mean trades? (...)`; lists all choices when few, else only the nearest."""
    known = sorted(choices)
    close = nearest(value, known)
    message = f"unknown {kind} {value!r}"
    if close:
        message += f": did you mean {', '.join(close)}?"
    if not close or len(known) <= 12:
        shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        message += f" (known: {shown})" if close else f": expected one of {shown}" if shown else ": there are none"
    if hint:
        message += f" ({hint})"
    return UserError(message)


class PluginError(Exception):
    """A plugin breaks the rules; the sentence is meant for its author."""
