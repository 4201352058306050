"""The table of accuracies that a measurement ends with."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_accuracies(evaluation: Any, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name, justify in (("attack", "left"), ("accuracy", "right"), ("test images", "right"), ("seconds", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, value, n in evaluation.rows():
        seconds = evaluation.attacks.get(name, {}).get("seconds")
        table.add_row(name, f"{value:.2%}", str(n), "" if seconds is None else f"{seconds:.1f}")
    console = Console()
    console.print(table)
    for entry in evaluation.attacks.values():
        for flag in entry.get("flags", []):
            console.print(f"warning: {flag}", style="yellow", markup=False)
