"""`timm-robust masking`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from timm_robust.cli.app import app, record_file
from timm_robust.cli.arguments import (
    Checkpoint,
    DataDir,
    Device,
    Download,
    Eps,
    EvalBatchSize,
    EvalData,
    Examples,
    Json,
    Norm,
    Quiet,
    Seed,
)
from timm_robust.cli.parsing import is_stdout
from timm_robust.cli.tables import make_table, percent, show


@app.command(epilog="Example: timm-robust masking runs/pgd --examples 500")
def masking(
    checkpoint: Checkpoint,
    data: EvalData = None,
    eps: Eps = None,
    norm: Norm = None,
    draws: Annotated[int, typer.Option(help="Number of random perturbations of each image.")] = 100,
    examples: Examples = None,
    batch_size: EvalBatchSize = 250,
    seed: Seed = 0,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    json_: Json = None,
    quiet: Quiet = False,
) -> None:
    """Look for masked gradients: signs that attacks fail although the model is not robust.

    A model may look robust because its gradients are zero, noisy or misleading (Athalye et al., ICML 2018). Real
    robustness passes every check: one step is no stronger than many, chance no stronger than the gradient, an unbounded
    attack always succeeds, more steps never hurt, and gradients are not zero. Passing is no proof: AutoAttack is the
    number to report. Exit status 1 if a check fails.
    """
    from timm_robust.api.masking import masking as run

    with record_file(json_) as file:
        checks = run(
            checkpoint, data, eps=eps, norm=norm, draws=draws, examples=examples, batch_size=batch_size, seed=seed,
            data_dir=data_dir, download=bool(download), device=device, json=file, quiet=quiet,
        )  # fmt: skip
    failed = [check for check in checks if not check.passed]
    if is_stdout(json_):
        raise typer.Exit(1 if failed else 0)
    table = make_table(f"signs of masked gradients in {checkpoint}", "sign", "seen", "measured")
    for check in checks:
        numbers = "\n".join(f"{name} {percent(value)}" for name, value in check.numbers.items())
        table.add_row(check.name, "no" if check.passed else "[red]YES[/red]", numbers)
    show(table)
    for check in failed:
        Console(highlight=False).print(f"{check.name}: {check.meaning}", style="yellow", markup=False)
    if json_:
        typer.echo(f"record: {json_}")
    if failed:
        raise typer.Exit(1)
    typer.echo("no sign of masked gradients; for the number to report:")
    typer.echo(f"  timm-robust evaluate {checkpoint} --attack autoattack")
