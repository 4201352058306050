"""`timm-robust report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timm_robust.cli.app import app


@app.command(epilog="Example: timm-robust report runs/pgd runs/sglr --output report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, finished or not.")],
    output: Annotated[Path, typer.Option(help="HTML file; an existing one is replaced.")] = Path("report.html"),
) -> None:
    """Write a page on robust overfitting: a table of best and last epochs, and curves over the epochs.

    For runs trained with --set diagnose=N it also shows robust accuracy on training and test images, and memorization.
    """
    from timm_robust.api.report import make_report

    typer.echo(f"report: {make_report(runs, output)}")
