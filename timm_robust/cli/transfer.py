"""`timm-robust transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timm_robust.cli.app import app, record_file
from timm_robust.cli.arguments import (
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
from timm_robust.cli.parsing import Strings, is_stdout, split_commas
from timm_robust.cli.tables import counted, make_table, show


@app.command(epilog="Example: timm-robust transfer runs/sat --from runs/pgd runs/standard --attack torchattacks:MIFGSM")
def transfer(
    target: Annotated[Path, typer.Argument(help="Folder of the run or checkpoint to measure.")],
    from_: Annotated[
        Strings, typer.Option("--from", help="Folders of runs or checkpoints to craft attacks on.")
    ] = None,
    data: EvalData = None,
    attack: Annotated[
        str,
        typer.Option(
            help="Attack: fgsm, pgd-K-R, cw-linf, or e.g. torchattacks:MIFGSM:steps=50, whose momentum transfers."
        ),
    ] = "pgd-50-1",
    eps: Eps = None,
    norm: Norm = None,
    examples: Examples = None,
    batch_size: EvalBatchSize = 250,
    seed: Seed = 0,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    json_: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint under attacks that were crafted on other checkpoints.

    This is what an attacker without the weights can do. A model that is broken by another network's adversarial images
    more often than by its own masks its gradients: compare with `timm-robust evaluate TARGET --attack pgd-50-1`.
    """
    from timm_robust.api.transfer import transfer as run

    with record_file(json_) as file:
        found = run(
            target, split_commas(from_) or [], data, attack=attack, eps=eps, norm=norm,
            examples=examples, batch_size=batch_size, seed=seed, data_dir=data_dir, download=bool(download),
            device=device, json=file, quiet=quiet,
        )  # fmt: skip
    if is_stdout(json_):
        return
    headings = ("crafted on", "accuracy", "95 % interval", "test images")
    table = make_table(f"{target} under {found.attack} from others", *headings)
    rows = {"nothing (clean)": found.clean, **found.still_correct}
    if len(found.still_correct) > 1:
        rows["all of them"] = found.worst
    for name, verdicts in rows.items():
        table.add_row(str(name), *counted(sum(verdicts), len(verdicts)))
    show(table)
    if json_:
        typer.echo(f"record: {json_}")
