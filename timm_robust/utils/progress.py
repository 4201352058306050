"""What a run shows: a bar over the batches with the last accuracies, and one lasting line per epoch. Torch-free."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Measuring(Protocol):
    """Told the name of what runs, how much of it is done, the total, and what is known so far."""

    def __call__(self, name: str, done: float, total: float, status: str = "") -> None: ...


class Display:
    """Prints to standard error, so that standard output stays for results.

    Args:
        quiet: show nothing but warnings.
    """

    interval = 0.2
    """Seconds between updates of the bar: reading the loss waits for the device."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: Any = None
        self._updated = 0.0
        self.status = ""

    @contextlib.contextmanager
    def bar(self, title: str, total: int, *, share: bool = False) -> Iterator[None]:
        """A bar of `total` steps that disappears when done; without a terminal nothing is drawn.

        Args:
            share: show the share done instead of the number of steps.
        """
        if self.quiet or not self.console.is_terminal:
            yield
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn() if share else MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            transient=True,
        )
        try:
            with self._progress:
                self._task = self._progress.add_task(title, total=total, status=self.status)
                yield
        finally:
            self._progress = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[int, int], None]]:
        """A bar for decoding; yields what is told how many images are done, and of how many."""
        with self.bar("reading images", 1):
            yield lambda done, total: self.advance(done, total=total) if self.due() else None

    @contextlib.contextmanager
    def measuring(self) -> Iterator[Measuring]:
        """A bar for attacks; yields what is told the name of what runs, how much is done, of how much, and a status."""
        with self.bar("measuring", 1, share=True):
            yield lambda name, done, total, status="": self.advance(done, title=name, total=total, status=status)

    def due(self) -> bool:
        """Whether the bar wants an update now."""
        return self._progress is not None and time.perf_counter() - self._updated >= self.interval

    def advance(
        self, done: float, *, title: str | None = None, total: float | None = None, status: str | None = None
    ) -> None:
        """Moves the bar to `done`."""
        if self._progress is None:
            return
        self._updated = time.perf_counter()
        changes: dict[str, Any] = {"completed": done}
        if title is not None:
            changes["description"] = title
        if total is not None:
            changes["total"] = total
        if status is not None:
            changes["status"] = status
        self._progress.update(self._task, **changes)

    def say(self, text: str) -> None:
        """One lasting line."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """One lasting warning, shown even when quiet."""
        self.console.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)
