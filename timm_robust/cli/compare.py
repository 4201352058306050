"""`timm-robust compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from timm_robust.cli.app import app, stop
from timm_robust.cli.arguments import (
    BatchSize,
    Data,
    DataDir,
    Device,
    Download,
    Epochs,
    Eps,
    ExtraData,
    ExtraShare,
    ImageSize,
    Model,
    ModelKwargs,
    Norm,
    Precision,
    Pretrained,
    Quiet,
    Rate,
    RecipeName,
    Settings,
    Stem,
    TestAttack,
    TestExamples,
    Workers,
)
from timm_robust.cli.parsing import Pairs, by_method, pairs, whole, words


@app.command(
    epilog="Example: timm-robust compare --methods fgsm,n-fgsm,moat -o moat.stages=r2 --seeds 0,1,2 --epochs 15 "
    "--data photos/ --output runs/three"
)
def compare(
    methods: Annotated[
        Pairs,
        typer.Option(
            help="Defenses, as fgsm,n-fgsm,sat or one by one, with modifiers as trades+awp; `timm-robust methods` and "
            "`timm-robust modifiers` list them."
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    seeds: Annotated[
        Pairs, typer.Option(help="Seeds, as 0,1,2 or one by one; each method runs with each. [default: 0,1,2]")
    ] = None,
    epochs: Epochs = None,
    output: Annotated[
        Optional[Path],
        typer.Option(help="Folder; each run is in METHOD-seedS below it. [default: runs/compare-MODEL-DATA]"),
    ] = None,
    option: Annotated[
        Pairs, typer.Option("--option", "-o", help="Options of one method or modifier: -o trades.beta=5 awp.gamma=0.01")
    ] = None,
    eps: Eps = None,
    norm: Norm = None,
    recipe: RecipeName = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    set_: Settings = None,
    model_kwargs: ModelKwargs = None,
    pretrained: Pretrained = None,
    stem: Stem = None,
    image_size: ImageSize = None,
    extra_data: ExtraData = None,
    extra_share: ExtraShare = None,
    data_dir: DataDir = None,
    download: Download = None,
    precision: Precision = None,
    device: Device = None,
    workers: Workers = None,
    test_attack: TestAttack = None,
    test_examples: TestExamples = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the comparison in --output: finished runs are taken as they are, settings need no "
            "repeating, --methods and --seeds may add some.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model with several methods and seeds, and show side by side what each reaches and costs.

    All runs share data, budget, seeds and evaluation; what a method recommends, such as an activation, is its own. A
    run that fails does not end the others. The table shows, per method, mean and standard deviation over the seeds:
    clean and robust accuracy of the best checkpoint on the test split, and robust accuracy after the *last* epoch on
    the validation split, which betrays a collapse that the best checkpoint hides; then seconds, passes, and
    catastrophic overfitting. It stays in comparison.md and comparison.json; comparison.png and .svg show robust
    accuracy over the epochs.
    """
    given: dict[str, Any] = {
        "methods": words(methods),
        "model": model,
        "data": data,
        "seeds": [whole(word) for word in words(seeds) or []] or None,
        "epochs": epochs,
        "output": output,
        "method_args": by_method(option) or None,
        "eps": eps,
        "norm": norm,
        "recipe": recipe,
        "batch_size": batch_size,
        "lr": lr,
        "recipe_args": pairs(set_, "--set") or None,
        "model_kwargs": pairs(model_kwargs, "--model-kwargs") or None,
        "pretrained": pretrained,
        "stem": stem,
        "image_size": image_size,
        "extra_data": extra_data,
        "extra_share": extra_share,
        "data_dir": data_dir,
        "download": download,
        "precision": precision,
        "device": device,
        "workers": workers,
        "test_examples": test_examples,
        "test_attacks": [] if test_attack == ["none"] else test_attack,
    }
    arguments = {name: value for name, value in given.items() if value is not None}
    from timm_robust.api.compare import compare as run
    from timm_robust.api.compare import default_output, read_asked

    if resume and output is not None:
        arguments = {**read_asked(output), **arguments}
    elif not resume:
        arguments.setdefault("output", default_output(arguments.get("model"), arguments.get("data")))
    try:
        result = run(**{"methods": [], **arguments}, resume=resume, quiet=quiet)
    except KeyboardInterrupt:
        stop(f"interrupted; continue with: timm-robust compare --resume --output {arguments['output']}", 130)
    _print_comparison(result)
    if result.failed:
        told = f"{len(result.failed)} of {len(result.runs)} runs failed"
        stop(f"{told}; try them again with: timm-robust compare --resume --output {result.output}", 1)


def _print_comparison(result: Any) -> None:
    console = Console(highlight=False)
    if console.is_terminal:
        result.show(console)
    else:
        print(result)
    out = result.output
    typer.echo(f"\ntable: {out}/comparison.md   numbers: {out}/comparison.json   curves: {out}/comparison.png")
    if result.done:
        typer.echo(f"next:\n  timm-robust evaluate {result.done[0].folder} --attack pgd-50-10 autoattack")
