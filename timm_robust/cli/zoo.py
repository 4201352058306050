"""`timm-robust zoo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timm_robust.cli.app import app, emit_json
from timm_robust.cli.arguments import Json


@app.command(epilog="Example: timm-robust zoo --dataset cifar100 --threat Linf")
def zoo(
    dataset: Annotated[str, typer.Option(help="Leaderboard: cifar10, cifar100 or imagenet.")] = "cifar10",
    threat: Annotated[str, typer.Option(help="Threat model: Linf, L2 or corruptions.")] = "Linf",
    folder: Annotated[Path, typer.Option(help="Folder of the weights, as FOLDER/DATASET/THREAT/NAME.pt.")] = Path(
        "models"
    ),
    json_: Json = None,
) -> None:
    """List the models of RobustBench's zoo, and which of their weights are on this machine."""
    from timm_robust.robustbench.zoo import list_zoo

    entries = list_zoo(dataset, threat, folder)
    if json_ is not None:
        emit_json(json_, [entry.to_dict() for entry in entries])
        return
    from rich.console import Console
    from rich.table import Table

    here = sum(entry.here for entry in entries)
    table = Table(
        title=f"RobustBench {dataset} {threat}: {len(entries)} models, {here} in {folder}", title_justify="left"
    )
    for column in ("name", "files", "here", "weights from"):
        table.add_column(column, no_wrap=column == "name")
    for entry in entries:
        table.add_row(entry.name, str(len(entry.files)), "yes" if entry.here else "", entry.links[0])
    Console(highlight=False).print(table, markup=False)
    typer.echo(f"\nload one: timm_robust.robustbench.load_zoo(NAME, {dataset!r}, {threat!r}, {str(folder)!r})")
