"""`timm-robust curve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timm_robust.cli.app import app, record_file
from timm_robust.cli.arguments import (
    DataDir,
    Device,
    Download,
    EvalBatchSize,
    EvalData,
    Examples,
    Json,
    Norm,
    Quiet,
    Seed,
)
from timm_robust.cli.parsing import Strings, is_stdout, split_commas
from timm_robust.cli.tables import make_table, percent, show


@app.command(epilog="Example: timm-robust curve runs/pgd runs/sat --attack pgd-20-1 --examples 500 --output curve.svg")
def curve(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT", help="Folders of runs (their best checkpoints) or checkpoints."),
    ],
    data: EvalData = None,
    eps_values: Annotated[
        Strings,
        typer.Option(help="Radii: --eps-values 0 4/255 8/255. [default: 0 to 4 times that of the training]"),
    ] = None,
    attack: Annotated[str, typer.Option(help="Attack, as in evaluate.")] = "pgd-10-1",
    norm: Norm = None,
    output: Annotated[Path, typer.Option(help="File of the picture: .svg, .png or .pdf.")] = Path("curve.svg"),
    examples: Examples = None,
    batch_size: EvalBatchSize = 250,
    seed: Seed = 0,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    json_: Json = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Continue an interrupted curve, or start over.")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """Robust accuracy over the radius: a table and a picture, for one or several checkpoints.

    One radius hides much: a curve shows what is left at half of it, and that accuracy reaches zero at large ones, as it
    must. At each radius only images that withstood all smaller ones are attacked, so a curve never rises.
    """
    from timm_robust.api.curve import curve as run

    with record_file(json_) as file:
        found = run(
            checkpoints, data, eps_values=split_commas(eps_values), attack=attack, output=output,
            examples=examples, norm=norm, batch_size=batch_size, seed=seed, data_dir=data_dir,
            download=bool(download), device=device, json=file,
            restart=not resume, quiet=quiet,
        )  # fmt: skip
    if is_stdout(json_):
        return
    first = next(iter(found.values()))
    table = make_table(f"{first.norm}, {first.attack}, n = {first.n_examples}, seed {seed}", "eps", *found)
    by_text = [dict(zip(one.eps_texts, one.accuracies, strict=True)) for one in found.values()]
    for text in dict.fromkeys(text for one in by_text for text in one):
        table.add_row(text, *(percent(one.get(text)) for one in by_text))
    show(table)
    typer.echo(f"picture: {output}" + (f"   record: {json_}" if json_ else ""))
