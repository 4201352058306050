"""`timm-robust paired`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timm_robust.cli.app import app
from timm_robust.cli.tables import make_table, points, show


@app.command(epilog="Example: timm-robust paired sat.json pgd.json")
def paired(
    record_a: Annotated[Path, typer.Argument(help="Record of `evaluate --json`.")],
    record_b: Annotated[Path, typer.Argument(help="Another record, on the same images.")],
) -> None:
    """Compare two checkpoints image by image, from two records on the same images.

    Far sharper than two accuracies with their errors: what counts is on how many images they differ, and in whose
    favour. p is McNemar's: the probability of a split at least as lopsided if both are equally good.
    """
    from timm_robust.api.paired import paired as run

    found = run(record_a, record_b)
    headings = ("attack", "both", "only A", "only B", "neither", "A minus B", "95 % interval", "p")
    table = make_table(f"A = {record_a}, B = {record_b}: images classified correctly", *headings)
    for name, one in found.items():
        table.add_row(
            name, str(one.both), str(one.only_a), str(one.only_b), str(one.neither), points(one.difference),
            f"{points(one.low)} to {points(one.high)}", f"{one.p_value:.2g}",
        )  # fmt: skip
    show(table)
    typer.echo("A minus B and its interval in percentage points")
