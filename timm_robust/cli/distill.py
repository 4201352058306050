"""`timm-robust distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from timm_robust.cli.app import app, stop
from timm_robust.cli.arguments import Quiet, arguments_of, with_settings
from timm_robust.cli.parsing import Strings, parse_pairs
from timm_robust.errors import RunFailed


@app.command(epilog="Example: timm-robust distill --data photos/ --observer runs/standard --ipc 10 --output runs/small")
@with_settings(("data", "seed", "data_dir", "download", "device", "workers"))
def distill(
    method: Annotated[
        Optional[str],
        typer.Option(help="Distillation method; `timm-robust distillers` lists them. [default: rded]"),
    ] = None,
    option: Annotated[
        Strings,
        typer.Option("--option", "-o", metavar="NAME=VALUE ...", help="Options of the method, such as factor=2."),
    ] = None,
    observer: Annotated[
        Optional[str],
        typer.Option(
            help="Network that selects and labels: a run's folder, or the name of a timm model with ImageNet weights."
        ),
    ] = None,
    ipc: Annotated[Optional[int], typer.Option(help="Images per class. [default: 10]")] = None,
    output: Annotated[
        Optional[Path],
        typer.Option(help="Folder of the distilled dataset. [default: runs/METHOD-DATA-ipcN, numbered if taken]"),
    ] = None,
    image_size: Annotated[
        Optional[int], typer.Option(help="Side of the images in pixels. [default: the observer's]")
    ] = None,
    image_format: Annotated[
        Optional[str], typer.Option("--format", help="Image format: png or jpeg. [default: png]")
    ] = None,
    batch_size: Annotated[
        Optional[int], typer.Option(help="Images per forward pass of the observer. [default: 256]")
    ] = None,
    precision: Annotated[
        Optional[str], typer.Option(help="Precision of the observer: fp32, bf16 or fp16. [default: fp32]")
    ] = None,
    *,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the distillation in --output; its settings need not be repeated."),
    ] = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Distil a dataset: a few images per class, selected and labelled by an observer.

    Train on the result with `--data FOLDER`: validation and test images are those of the original dataset.
    """
    own = {
        "method": method,
        "method_args": parse_pairs(option, "--option") or None,
        "observer": observer,
        "ipc": ipc,
        "output": output,
        "image_size": image_size,
        "image_format": image_format,
        "batch_size": batch_size,
        "precision": precision,
    }
    arguments = {name: value for name, value in own.items() if value is not None} | arguments_of(given)
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
