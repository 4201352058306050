"""`timm-robust distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from timm_robust.cli.app import app, stop
from timm_robust.cli.arguments import Data, DataDir, Device, Download, Quiet
from timm_robust.cli.parsing import Pairs, pairs
from timm_robust.errors import RunFailed


@app.command(epilog="Example: timm-robust distill --data photos/ --observer runs/standard --ipc 10 --output runs/small")
def distill(
    method: Annotated[
        Optional[str], typer.Option(help="A distiller; `timm-robust distillers` lists them. [default: rded]")
    ] = None,
    data: Data = None,
    observer: Annotated[
        Optional[str],
        typer.Option(help="Network that chooses and labels: a run's folder, or a timm name with weights for ImageNet."),
    ] = None,
    ipc: Annotated[Optional[int], typer.Option(help="Images per class. [default: 10]")] = None,
    output: Annotated[Optional[Path], typer.Option(help="Folder. [default: runs/METHOD-DATA-ipcN]")] = None,
    option: Annotated[Pairs, typer.Option("--option", "-o", help="Options of the distiller: -o factor=2")] = None,
    image_size: Annotated[
        Optional[int], typer.Option(help="Side of the images in pixels. [default: that of the observer]")
    ] = None,
    image_format: Annotated[Optional[str], typer.Option("--format", help="png or jpeg. [default: png]")] = None,
    data_dir: DataDir = None,
    download: Download = None,
    seed: Annotated[Optional[int], typer.Option(help="Of every random draw. [default: 0]")] = None,
    batch_size: Annotated[
        Optional[int], typer.Option(help="Images that the observer sees at once. [default: 256]")
    ] = None,
    precision: Annotated[
        Optional[str], typer.Option(help="Of the observer: fp32, bf16 or fp16. [default: fp32]")
    ] = None,
    device: Device = None,
    workers: Annotated[Optional[int], typer.Option(help="Processes that read images.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the distillation in --output; its settings need no repeating.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make a small data set of a large one: a few images for each class, chosen and labelled by an observer.

    Train on the folder with `--data FOLDER`: validation and test images are those of the data that was distilled.
    """
    given = {
        "method": method,
        "data": data,
        "observer": observer,
        "ipc": ipc,
        "output": output,
        "method_args": pairs(option, "--option") or None,
        "image_size": image_size,
        "image_format": image_format,
        "data_dir": data_dir,
        "download": download,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
        "workers": workers,
    }
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    from timm_robust.api.distill import distill as run
    from timm_robust.api.distill import read_asked

    if resume and output is not None:
        arguments = {**read_asked(output), **arguments}
    try:
        result = run(**arguments, resume=resume, quiet=quiet)
    except RunFailed as error:
        stop(str(error), 1)
    except KeyboardInterrupt:
        where = arguments.get("output") or "the folder"
        stop(f"interrupted; continue with: timm-robust distill --resume --output {where}", 130)
    typer.echo(
        f"{result}\n\neach patch's origin: {result.output}/patches.jsonl   all settings: {result.output}/manifest.json"
        f"\nnext:\n  timm-robust train --model MODEL --data {result.output} {result.use or '--method METHOD'}"
    )
