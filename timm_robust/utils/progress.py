"""Progress on the terminal: a bar over the steps, and lasting lines such as one per epoch. Torch-free."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol, TypeVar

from rich import progress as rich_progress
from rich.console import Console

Part = TypeVar("Part", bound=Sized)


class Progress(Protocol):
    """Callback of everything that takes long: name of what runs, amount done so far, total, intermediate result."""

    def __call__(self, name: str, done: float, total: float, status: str = "") -> None: ...


def tracked(parts: Iterable[Part], progress: Progress | None, name: str, total: int, done: int = 0) -> Iterator[Part]:
    """Yields `parts`, and reports after each how many items are done.

    Args:
        parts: batches, for example.
        progress: None reports nothing.
        name: of what runs.
        total: number of items in all parts.
        done: number of items that were done before.
    """
    for part in parts:
        yield part
        done += len(part)
        if progress:
            progress(name, done, total)


class Display:
    """Prints to standard error, so that standard output stays for results.

    Args:
        quiet: show nothing but warnings.
    """

    interval = 0.2
    """Seconds between updates of the bar: reading the loss synchronises with the device."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self._progress: rich_progress.Progress | None = None
        self._task: Any = None
        self._updated = 0.0
        self.status = ""

    @contextlib.contextmanager
    def bar(self, title: str, total: int, *, share: bool = False) -> Iterator[None]:
        """A bar that disappears when done; without a terminal nothing is drawn.

        Args:
            title: name of what runs.
            total: number of steps.
            share: show percent instead of the number of steps.
        """
        if self.quiet or not self.console.is_terminal:
            yield
            return
        self._progress = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=28),
            rich_progress.TaskProgressColumn() if share else rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[status]}"),
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
    def reading(self, title: str = "reading images") -> Iterator[Progress]:
        """A bar that counts many small steps; it is redrawn a few times per second."""
        with self.bar(title, 1):
            yield (
                lambda name, done, total, status="": (
                    self.advance(done, title=name, total=total, status=status) if self.due() else None
                )
            )

    @contextlib.contextmanager
    def measuring(self) -> Iterator[Progress]:
        """A bar for attacks, in percent."""
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
