"""`timm-robust compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from timm_robust.api.settings import SHARED
from timm_robust.cli.app import app, stop
from timm_robust.cli.arguments import Quiet, arguments_of, with_settings
from timm_robust.cli.parsing import Strings, by_owner, parse_int, parse_pairs, split_commas


@app.command(
    epilog="Example: timm-robust compare --methods fgsm,n-fgsm,moat -o moat.stages=r2 --seeds 0,1,2 --epochs 15 "
    "--data photos/ --output runs/three"
)
@with_settings(SHARED)
def compare(
    methods: Annotated[
        Strings,
        typer.Option(
            metavar="NAME ...",
            help="Training methods, with modifiers as in trades+awp; `timm-robust methods` and `timm-robust modifiers` "
            "list them.",
        ),
    ] = None,
    seeds: Annotated[
        Strings, typer.Option(metavar="N ...", help="Random seeds; each method runs with each. [default: 0 1 2]")
    ] = None,
    option: Annotated[
        Strings,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE ...",
            help="Options of one method or modifier, such as trades.beta=5 awp.gamma=0.01.",
        ),
    ] = None,
    output: Annotated[
        Optional[Path],
        typer.Option(
            help="Folder of the comparison, with a folder METHOD-seedS for each run. "
            "[default: runs/compare-MODEL-DATA, numbered if taken]"
        ),
    ] = None,
    *,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the comparison in --output; its settings need not be repeated. Finished runs are kept, and "
            "--methods and --seeds may add some.",
        ),
    ] = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Train a model with several methods and seeds, and show side by side what each reaches and costs.

    All runs share data, budget, seeds and evaluation; what a method recommends, such as an activation, is its own. A
    run that fails does not end the others. The table shows, per method, mean and standard deviation over the seeds:
    clean and robust accuracy of the best checkpoint on the test split, and robust accuracy after the *last* epoch on
    the validation split, which reveals a collapse that the best checkpoint hides; then seconds, passes, and
    catastrophic overfitting. It is written to comparison.md and comparison.json; comparison.png and .svg show robust
    accuracy over the epochs.
    """
    own = {
        "methods": split_commas(methods),
        "seeds": [parse_int(word, "seed") for word in split_commas(seeds) or []],
        "output": output,
        "method_args": by_owner(parse_pairs(option, "--option")),
    }
    arguments = {name: value for name, value in own.items() if value} | arguments_of(given)
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
        summary = f"{len(result.failed)} of {len(result.runs)} runs failed"
        stop(f"{summary}; try them again with: timm-robust compare --resume --output {result.output}", 1)


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
