"""The table of accuracies that a measurement ends with."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_accuracies(evaluation: Any, title: str) -> None:
    from timm_robust.evaluation.statistics import wilson

    table = Table(title=title, title_justify="left")
    table.add_column("attack")
    for name in ("accuracy", "95 % interval", "test images", "seconds"):
        table.add_column(name, justify="right")
    for name, value, n in evaluation.rows():
        seconds = evaluation.attacks.get(name, {}).get("seconds")
        low, high = wilson(round(value * n), n)
        interval = f"{low:.1%} to {high:.1%}"
        table.add_row(name, f"{value:.2%}", interval, str(n), "" if seconds is None else f"{seconds:.1f}")
    console = Console()
    console.print(table)
    for entry in evaluation.attacks.values():
        for flag in entry.get("flags", []):
            console.print(f"warning: {flag}", style="yellow", markup=False)
