"""Table of accuracies, as printed after an evaluation."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from timm_robust.cli.tables import make_table


def print_accuracies(evaluation: Any, title: str) -> None:
    """Prints the accuracies of an `Evaluation`, and AutoAttack's warnings."""
    from timm_robust.evaluation.statistics import wilson

    table = make_table(title, "attack", "accuracy", "95 % interval", "test images", "seconds")
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
