"""`timm-robust evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from timm_robust.cli.accuracies import print_accuracies
from timm_robust.cli.app import app
from timm_robust.cli.parsing import Pairs


@app.command(
    epilog="Example: timm-robust evaluate runs/first --attack pgd-50-10 autoattack --n-examples 256 --json record.json"
)
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A run's folder (its best checkpoint), a checkpoint folder, or zoo:NAME of RobustBench."),
    ],
    data: Annotated[
        Optional[str],
        typer.Option(
            help="As in train; a folder with test/CLASS/* will do, its classes are matched by name. "
            "[default: what the checkpoint was trained on]"
        ),
    ] = None,
    attack: Annotated[
        Pairs,
        typer.Option(
            help="clean, fgsm, pgd-K-R (K steps, R restarts), apgd-ce, apgd-dlr, apgd-t, cw, cw-linf, autoattack, "
            "autoattack-plus, autoattack-rand, torchattacks:NAME:key=value. [default: clean pgd-50-10]"
        ),
    ] = None,
    n_examples: Annotated[Optional[int], typer.Option(help="The first so many test images. [default: all]")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once; AutoAttack's verdicts depend on it.")] = 250,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    eps: Annotated[Optional[str], typer.Option(help="Radius such as 8/255. [default: that of the training]")] = None,
    norm: Annotated[Optional[str], typer.Option(help="Linf, L2 or L1. [default: that of the training]")] = None,
    data_dir: Annotated[Optional[str], typer.Option(help="Root folder of timm data sets.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Let data sets and zoo weights be fetched.")] = False,
    device: Annotated[Optional[str], typer.Option(help="cpu stays off a GPU.")] = None,
    json_: Annotated[Optional[Path], typer.Option("--json", help="Write the record here.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on after a kill, with the same verdicts, or begin anew.")
    ] = True,
    fast: Annotated[
        bool, typer.Option("--fast", help="AutoAttack's fast mode, for development; torchrun shares its images.")
    ] = False,
    precision: Annotated[str, typer.Option(help="With --fast: fp32, or bf16 while crafting.")] = "fp32",
    compile_: Annotated[bool, typer.Option("--compile", help="With --fast: torch.compile, pays on a GPU.")] = False,
    random_outputs: Annotated[
        bool, typer.Option("--random-outputs", help="The model's outputs are random on purpose (autoattack-rand).")
    ] = False,
    robustbench: Annotated[
        bool, typer.Option("--robustbench", help="Run robustbench.benchmark itself as well, on the same images.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure a checkpoint on the test split; no plugin is loaded for that.

    The same line goes on where a killed one stopped.
    """
    from timm_robust.api.evaluate import evaluate as run

    result = run(
        checkpoint,
        data,
        attacks=attack or ["clean", "pgd-50-10"],
        examples=n_examples,
        batch_size=batch_size,
        seed=seed,
        eps=eps,
        norm=norm,
        data_dir=data_dir,
        download=download,
        device=device,
        json=json_,
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
    print_accuracies(result, f"{result.checkpoint} on {result.data}, {result.threat}, seed {seed}")
    if json_:
        typer.echo(f"record: {json_}")
