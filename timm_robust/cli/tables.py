"""Tables and numbers as the commands print them. Torch-free."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def make_table(title: str, *headings: str) -> Table:
    """A table whose first column is text, the others numbers."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table


def show(table: Any) -> None:
    """Prints a table to standard output."""
    Console(highlight=False).print(table)


def percent(value: float | None) -> str:
    """A share in [0, 1] in percent; empty for None."""
    return "" if value is None else f"{value:.2%}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.2f}"


def counted(successes: int, n: int) -> tuple[str, str, str]:
    """Accuracy, its 95 % interval, and the number of images."""
    from timm_robust.evaluation.statistics import wilson

    low, high = wilson(successes, n)
    return percent(successes / n), f"{percent(low)} to {percent(high)}", str(n)
