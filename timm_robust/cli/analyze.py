"""More than one number: `timm-robust curve`, `masking`, `transfer`, `corruptions` and `paired`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from timm_robust.cli.app import app
from timm_robust.cli.arguments import DataDir, Device, Quiet
from timm_robust.cli.parsing import Strings

Checkpoint = Annotated[Path, typer.Argument(help="A run's folder (its best checkpoint) or a checkpoint folder.")]
Data = Annotated[Optional[str], typer.Option(help="As in train. [default: what the checkpoint was trained on]")]
NExamples = Annotated[Optional[int], typer.Option(help="The first so many test images. [default: all]")]
BatchSize = Annotated[int, typer.Option(help="Images at once.")]
Seed = Annotated[int, typer.Option(help="Of every random draw.")]
Eps = Annotated[Optional[str], typer.Option(help="Radius such as 8/255. [default: that of the training]")]
Norm = Annotated[Optional[str], typer.Option(help="Linf, L2 or L1. [default: that of the training]")]
Download = Annotated[bool, typer.Option("--download", help="Let data sets and zoo weights be fetched.")]
Json = Annotated[Optional[Path], typer.Option("--json", help="Write the record here.")]


@app.command(epilog="Example: timm-robust curve runs/pgd runs/sat --attack pgd-20-1 --n-examples 500 --out curve.svg")
def curve(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT", help="Folders of runs or checkpoints.")],
    data: Data = None,
    eps_values: Annotated[
        Strings,
        typer.Option(help="Radii: --eps-values 0 4/255 8/255. [default: 0 to 4 times that of the training]"),
    ] = None,
    attack: Annotated[str, typer.Option(help="As in evaluate.")] = "pgd-10-1",
    norm: Norm = None,
    out: Annotated[Path, typer.Option(help="The picture: .svg, .png or .pdf.")] = Path("curve.svg"),
    n_examples: NExamples = None,
    batch_size: BatchSize = 250,
    seed: Seed = 0,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    json_: Json = None,
    resume: Annotated[bool, typer.Option("--resume/--restart", help="Go on after a kill, or begin anew.")] = True,
    quiet: Quiet = False,
) -> None:
    """Robust accuracy over the radius: a table and a picture, for one or several checkpoints.

    One radius hides much: a curve shows what is left at half of it, and that accuracy reaches zero for large ones, as
    it must. At each radius only images that stood at all smaller ones are attacked, so a curve never rises.
    """
    from timm_robust.api.analyze import curve as run

    found = run(
        checkpoints, data, eps_values=eps_values, attack=attack, out=out, n_examples=n_examples, norm=norm,
        batch_size=batch_size, seed=seed, data_dir=data_dir, download=download, device=device, json=json_,
        restart=not resume, quiet=quiet,
    )  # fmt: skip
    first = next(iter(found.values()))
    table = _table(f"{first.norm}, {first.attack}, n = {first.n_examples}, seed {seed}", "eps")
    for name in found:
        table.add_column(name, justify="right", overflow="fold")
    for text in dict.fromkeys(text for one in found.values() for text in one.eps_texts):
        table.add_row(
            text, *(_share(dict(zip(one.eps_texts, one.accuracies, strict=True)).get(text)) for one in found.values())
        )
    _show(table)
    typer.echo(f"picture: {out}" + (f"   record: {json_}" if json_ else ""))


@app.command(epilog="Example: timm-robust masking runs/pgd --n-examples 500")
def masking(
    checkpoint: Checkpoint,
    data: Data = None,
    eps: Eps = None,
    norm: Norm = None,
    draws: Annotated[int, typer.Option(help="Random perturbations of each image.")] = 100,
    n_examples: NExamples = None,
    batch_size: BatchSize = 250,
    seed: Seed = 0,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    json_: Json = None,
    quiet: Quiet = False,
) -> None:
    """Look for masked gradients: signs that attacks fail although the model is not robust.

    A model may look robust because its gradients are zero, noisy or misleading (Athalye et al., ICML 2018). Honest
    robustness passes every check: one step is no stronger than many, chance no stronger than the gradient, an attack
    without a bound always wins, more steps never hurt, and gradients are there. Passing is no proof: AutoAttack is the
    number to report. Exit status 1 where a check fails.
    """
    from timm_robust.api.analyze import masking as run

    checks = run(
        checkpoint, data, eps=eps, norm=norm, draws=draws, n_examples=n_examples, batch_size=batch_size, seed=seed,
        data_dir=data_dir, download=download, device=device, json=json_, quiet=quiet,
    )  # fmt: skip
    table = _table(f"signs of masked gradients in {checkpoint}", "sign", "seen", "measured")
    for check in checks:
        numbers = "\n".join(f"{name} {_share(value)}" for name, value in check.numbers.items())
        table.add_row(check.name, "no" if check.passed else "[red]YES[/red]", numbers)
    _show(table)
    failed = [check for check in checks if not check.passed]
    for check in failed:
        Console(highlight=False).print(f"{check.name}: {check.meaning}", style="yellow", markup=False)
    if json_:
        typer.echo(f"record: {json_}")
    if failed:
        raise typer.Exit(1)
    typer.echo("no sign of masked gradients; for the number to report:")
    typer.echo(f"  timm-robust evaluate {checkpoint} --attack autoattack")


@app.command(epilog="Example: timm-robust transfer runs/sat --from runs/pgd runs/standard --attack torchattacks:MIFGSM")
def transfer(
    target: Annotated[Path, typer.Argument(help="The checkpoint that is measured.")],
    from_: Annotated[Strings, typer.Option("--from", help="Checkpoints that the attacks are made on.")] = None,
    data: Data = None,
    attack: Annotated[
        str,
        typer.Option(help="fgsm, pgd-K-R, cw-linf, or e.g. torchattacks:MIFGSM:steps=50, whose momentum transfers."),
    ] = "pgd-50-1",
    eps: Eps = None,
    norm: Norm = None,
    n_examples: NExamples = None,
    batch_size: BatchSize = 250,
    seed: Seed = 0,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = None,
    json_: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint under attacks that were made on other checkpoints.

    This is what an attacker without the weights can do. A model that falls to somebody else's images more often than to
    its own hides its gradients: compare with `timm-robust evaluate TARGET --attack pgd-50-1`.
    """
    from timm_robust.api.analyze import transfer as run

    found = run(
        target, from_ or [], data, attack=attack, eps=eps, norm=norm, n_examples=n_examples, batch_size=batch_size,
        seed=seed, data_dir=data_dir, download=download, device=device, json=json_, quiet=quiet,
    )  # fmt: skip
    table = _table(
        f"{target} under {found.attack} from others", "attacked with", "accuracy", "95 % interval", "test images"
    )
    rows = {"nothing (clean)": found.clean, **found.still_correct}
    if len(found.still_correct) > 1:
        rows["all of them"] = found.worst
    for name, robust_correct in rows.items():
        table.add_row(str(name), *_counted(sum(robust_correct), len(robust_correct)))
    _show(table)
    if json_:
        typer.echo(f"record: {json_}")


@app.command(epilog="Example: timm-robust corruptions runs/pgd --data CIFAR-10-C --n-examples 1000")
def corruptions(
    checkpoint: Checkpoint,
    data: Annotated[
        Path, typer.Option(help="CIFAR-10-C, CIFAR-100-C or ImageNet-C, unpacked, or a folder in their format.")
    ],
    n_examples: Annotated[
        Optional[int], typer.Option(help="The first so many images of each severity. [default: all]")
    ] = None,
    only: Annotated[Strings, typer.Option(help="Some of the corruptions: --only fog snow. [default: all 15]")] = None,
    batch_size: BatchSize = 250,
    device: Device = None,
    json_: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint on common corruptions: noise, blur, weather, compression.

    The benchmark of Hendrycks and Dietterich (ICLR 2019) by RobustBench's protocol: 15 corruptions in 5 severities, the
    mean over all of them. CORRUPTION.npy with labels.npy, or CORRUPTION/SEVERITY/CLASS/*, is what it reads.
    """
    from timm_robust.api.analyze import corruptions as run

    found = run(
        checkpoint, data, n_examples=n_examples, only=only, batch_size=batch_size, device=device, json=json_,
        quiet=quiet,
    )  # fmt: skip
    title = f"{checkpoint} on {data}, n = {found.n_examples} for each"
    table = _table(title, "corruption", *(f"severity {number}" for number in range(1, 6)), "mean")
    for name, row in found.accuracies.items():
        table.add_row(name, *map(_share, row), _share(sum(row) / len(row)))
    table.add_section()
    table.add_row("mean", *map(_share, found.by_severity), _share(found.mean))
    _show(table)
    if found.mce is not None:
        typer.echo(f"mCE: {found.mce:.1%} (100 % is AlexNet, less is better)")
    if json_:
        typer.echo(f"record: {json_}")


@app.command(epilog="Example: timm-robust paired sat.json pgd.json")
def paired(
    record_a: Annotated[Path, typer.Argument(help="A file of `evaluate --json`.")],
    record_b: Annotated[Path, typer.Argument(help="Another, on the same images.")],
) -> None:
    """Compare two checkpoints image by image, from two records on the same images.

    Far sharper than two accuracies with their errors: what counts is on how many images they differ, and in whose
    favour. p is McNemar's: how likely so lopsided a split is by chance if both are equally good.
    """
    from timm_robust.api.analyze import paired as run

    found = run(record_a, record_b)
    headings = ("attack", "both", "only A", "only B", "neither", "A minus B", "95 % interval", "p")
    table = _table(f"A = {record_a}, B = {record_b}: images that stand", *headings)
    for name, one in found.items():
        table.add_row(
            name, str(one.both), str(one.only_a), str(one.only_b), str(one.neither), _points(one.difference),
            f"{_points(one.low)} to {_points(one.high)}", f"{one.p_value:.2g}",
        )  # fmt: skip
    _show(table)
    typer.echo("A minus B and its interval in percentage points")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table


def _show(table: Any) -> None:
    Console(highlight=False).print(table)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _counted(successes: int, n: int) -> tuple[str, str, str]:
    """Accuracy, its 95 % interval, and the number of images."""
    from timm_robust.evaluation.statistics import wilson

    low, high = wilson(successes, n)
    return _share(successes / n), f"{_share(low)} to {_share(high)}", str(n)
