"""`timm-robust evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timm_robust.cli.accuracies import print_accuracies
from timm_robust.cli.app import app, emit_json
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
from timm_robust.cli.parsing import STDOUT, Strings, is_stdout, split_commas


@app.command(
    epilog="Example: timm-robust evaluate runs/first --attack pgd-50-10 autoattack --examples 256 --json record.json"
)
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Folder of a run (its best checkpoint) or of a checkpoint, or zoo:NAME for a model of RobustBench."
        ),
    ],
    data: EvalData = None,
    attack: Annotated[
        Strings,
        typer.Option(
            metavar="NAME ...",
            help="Attacks: clean, fgsm, pgd-K-R (K steps, R restarts), apgd-ce, apgd-dlr, apgd-t, cw, cw-linf, "
            "autoattack, autoattack-plus, autoattack-rand, torchattacks:NAME:key=value. [default: clean pgd-50-10]",
        ),
    ] = None,
    examples: Examples = None,
    batch_size: EvalBatchSize = 250,
    seed: Seed = 0,
    eps: Eps = None,
    norm: Norm = None,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    json_: Json = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--restart", help="Continue an interrupted evaluation, with equal results, or start over."
        ),
    ] = True,
    fast: Annotated[
        bool, typer.Option("--fast", help="Fast mode of AutoAttack, for development; torchrun distributes the images.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="Precision of the search for adversarial examples with --fast: fp32 or bf16.")
    ] = "fp32",
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Compile the model with torch.compile; with --fast only, worth it on a GPU."),
    ] = False,
    random_outputs: Annotated[
        bool, typer.Option("--random-outputs", help="The model is randomised on purpose (for autoattack-rand).")
    ] = False,
    robustbench: Annotated[
        bool, typer.Option("--robustbench", help="Also run robustbench.benchmark on the same images.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint on the test split, without loading any plugin.

    After an interruption the same command continues where it stopped.
    """
    from timm_robust.api.evaluate import evaluate as run

    printed = is_stdout(json_)
    result = run(
        checkpoint,
        data,
        attacks=split_commas(attack) or ["clean", "pgd-50-10"],
        examples=examples,
        batch_size=batch_size,
        seed=seed,
        eps=eps,
        norm=norm,
        data_dir=data_dir,
        download=download,
        device=device,
        json=None if printed else json_,
        restart=not resume,
        fast=fast,
        precision=precision,
        compile=compile_,
        random_outputs=random_outputs,
        robustbench=robustbench,
        quiet=quiet,
    )
    from timm_robust.utils import distributed

    if distributed.rank() > 0:
        return
    if printed:
        emit_json(Path(STDOUT), result.to_dict())
        return
    print_accuracies(result, f"{result.checkpoint} on {result.data}, {result.threat}, seed {seed}")
    if json_:
        typer.echo(f"record: {json_}")
