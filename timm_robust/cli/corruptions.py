"""`timm-robust corruptions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from timm_robust.cli.app import app, record_file
from timm_robust.cli.arguments import Checkpoint, Device, EvalBatchSize, Json, Quiet
from timm_robust.cli.parsing import Strings, is_stdout, split_commas
from timm_robust.cli.tables import make_table, percent, show


@app.command(epilog="Example: timm-robust corruptions runs/pgd --data CIFAR-10-C --examples 1000")
def corruptions(
    checkpoint: Checkpoint,
    data: Annotated[
        Path, typer.Option(help="CIFAR-10-C, CIFAR-100-C or ImageNet-C, unpacked, or a folder in their format.")
    ],
    examples: Annotated[
        Optional[int], typer.Option(help="Number of images of each severity, from the first. [default: all]")
    ] = None,
    only: Annotated[Strings, typer.Option(help="Some of the corruptions: --only fog snow. [default: all 15]")] = None,
    batch_size: EvalBatchSize = 250,
    device: Device = None,
    json_: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint on common corruptions: noise, blur, weather, compression.

    The benchmark of Hendrycks and Dietterich (ICLR 2019) by RobustBench's protocol: 15 corruptions in 5 severities, the
    mean over all of them. It reads CORRUPTION.npy with labels.npy, or CORRUPTION/SEVERITY/CLASS/*.
    """
    from timm_robust.api.corruptions import corruptions as run

    with record_file(json_) as file:
        found = run(
            checkpoint,
            data,
            examples=examples,
            only=split_commas(only),
            batch_size=batch_size,
            device=device,
            json=file,
            quiet=quiet,
        )
    if is_stdout(json_):
        return
    title = f"{checkpoint} on {data}, n = {found.n_examples} for each"
    table = make_table(title, "corruption", *(f"severity {number}" for number in range(1, 6)), "mean")
    for name, row in found.accuracies.items():
        table.add_row(name, *map(percent, row), percent(sum(row) / len(row)))
    table.add_section()
    table.add_row("mean", *map(percent, found.by_severity), percent(found.mean))
    show(table)
    if found.mce is not None:
        typer.echo(f"mCE: {found.mce:.1%} (100 % is AlexNet, lower is better)")
    if json_:
        typer.echo(f"record: {json_}")
