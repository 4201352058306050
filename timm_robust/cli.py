"""The command line: parses, calls `timm_robust.api`, prints. No logic. Torch-free until a command needs it."""

from __future__ import annotations

import ast
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer
from rich.console import Console
from rich.table import Table

from timm_robust.errors import RunFailed, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Adversarial training for any timm image classifier, measured with AutoAttack.",
    epilog="Start with: timm-robust train --model resnet18 --method sat --output runs/first",
)

SPREAD = (
    "--model-kwargs",
    "--set",
    "--option",
    "-o",
    "--attack",
    "--test-attack",
    "--track",
    "--methods",
    "--seeds",
    "--modifier",
)
"""Options that take several values in a row, as timm's do: `--model-kwargs layers=[1,1,1,1] drop_rate=0.1`."""

Pairs = Optional[list[str]]


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit status 2, a failed run is one sentence and 1."""
    _quiet_warnings()
    try:
        app(args=spread(sys.argv[1:]), prog_name="timm-robust")
    except UserError as error:
        _stop(str(error), 2)


def _quiet_warnings() -> None:
    """Warnings as one line each; those about other packages' futures are for their authors. `python -W` still rules."""
    if sys.warnoptions:
        return
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    console = Console(stderr=True, highlight=False)

    def show(message: Warning | str, *_: Any) -> None:
        console.print(f"warning: {message}", style="yellow", soft_wrap=True, markup=False)

    warnings.showwarning = show  # type: ignore[assignment]


def _stop(message: str, status: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"timm-robust: {message}", soft_wrap=True, markup=False)
    raise SystemExit(status)


def spread(arguments: list[str]) -> list[str]:
    """Repeats an option of `SPREAD` before each of the values that follow it, which is what the parser understands."""
    out: list[str] = []
    option = None
    for argument in arguments:
        if argument in SPREAD:
            option, first = argument, True
            continue
        if option is None or argument.startswith("-"):
            if option is not None and first:
                out.append(option)  # no value followed: let the parser complain
            option = None
            out.append(argument)
        else:
            out += [option, argument]
            first = False
    return out + ([option] if option is not None and first else [])


def pairs(given: Pairs, option: str) -> dict[str, Any]:
    """`["a=1", "b=[2,3]", "c=x"]` as {"a": 1, "b": [2, 3], "c": "x"}: Python literals where they parse, else text.

    Raises:
        UserError: an item without `=`.
    """
    out: dict[str, Any] = {}
    for item in given or []:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise UserError(f"{option} {item!r} is no assignment: expected name=value")
        try:
            out[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[name] = text
    return out


Model = Annotated[Optional[str], typer.Option(help="Any timm model name. [default: resnet18]")]
Data = Annotated[
    Optional[str],
    typer.Option(
        help="digits (embedded), a folder train/CLASS/* with val|test/CLASS/*, an .npz, or a timm name. "
        "[default: digits]"
    ),
]
Eps = Annotated[
    Optional[str],
    typer.Option(
        help="Radius as a share of the pixel range, such as 8/255. [default: 8/255 up to 64 pixels, 4/255 above]"
    ),
]
Norm = Annotated[Optional[str], typer.Option(help="Linf or L2. [default: Linf]")]
RecipeName = Annotated[Optional[str], typer.Option(help="Training settings by name; `timm-robust recipes` lists them.")]
Epochs = Annotated[Optional[int], typer.Option(help="Passes over the training set.")]
BatchSize = Annotated[Optional[int], typer.Option(help="Images per step and process.")]
Rate = Annotated[Optional[float], typer.Option(help="Largest learning rate.")]
Settings = Annotated[Pairs, typer.Option("--set", help="Any other recipe setting: --set ema=0.999 clip_grad=1")]
ModelKwargs = Annotated[
    Pairs,
    typer.Option(help="Arguments of timm.create_model: --model-kwargs layers=[1,1,1,1] channels=[16,32,64,128]"),
]
Pretrained = Annotated[Optional[bool], typer.Option("--pretrained", help="Start from timm's pretrained weights.")]
Stem = Annotated[
    Optional[str], typer.Option(help="auto keeps resolution up to 64 pixels, none leaves the model as is.")
]
ImageSize = Annotated[Optional[int], typer.Option(help="Side in pixels. [default: that of the data]")]
ExtraData = Annotated[
    Optional[str],
    typer.Option(
        help="More images to train on, such as generated ones: a folder CLASS/*, an .npz with image and label, or a "
        "timm name."
    ),
]
ExtraShare = Annotated[Optional[float], typer.Option(help="Their share of each batch. [default: 0.7]")]
DataDir = Annotated[Optional[str], typer.Option(help="Root folder of timm data sets.")]
Download = Annotated[Optional[bool], typer.Option("--download", help="Let timm data sets be fetched.")]
Precision = Annotated[Optional[str], typer.Option(help="fp32, bf16 or fp16. [default: fp32]")]
Device = Annotated[Optional[str], typer.Option(help="cpu stays off a GPU. [default: the best there is]")]
Workers = Annotated[Optional[int], typer.Option(help="Data-loading processes for large images.")]
TestAttack = Annotated[
    Pairs,
    typer.Option(
        help="What to measure at the end: clean, fgsm, pgd-K-R, autoattack; none for nothing. "
        "[default: clean pgd-10-1 autoattack]"
    ),
]
TestExamples = Annotated[
    Optional[int], typer.Option(help="Test images for that. [default: all; AutoAttack as many as fit 90 seconds]")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@app.command(epilog="Example: timm-robust train --model vit_tiny_patch16_224 --method trades -o beta=5 --data photos/")
def train(
    model: Model = None,
    method: Annotated[
        Optional[str], typer.Option(help="A defense; `timm-robust methods` lists them. [default: sat]")
    ] = None,
    data: Data = None,
    output: Annotated[Optional[Path], typer.Option(help="Folder of the run. [default: runs/MODEL-METHOD-DATA]")] = None,
    eps: Eps = None,
    norm: Norm = None,
    recipe: RecipeName = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    set_: Settings = None,
    option: Annotated[
        Pairs, typer.Option("--option", "-o", help="Options of the method, or of a modifier: -o beta=5 awp.gamma=0.01")
    ] = None,
    modifier: Annotated[
        Pairs,
        typer.Option(help="What composes with the method, such as awp or swa; `timm-robust modifiers` lists them."),
    ] = None,
    activation: Annotated[
        Optional[str],
        typer.Option(help="Smooth activation to swap in: silu, gelu, softplus, ... or none. [default: the method's]"),
    ] = None,
    model_kwargs: ModelKwargs = None,
    pretrained: Pretrained = None,
    stem: Stem = None,
    image_size: ImageSize = None,
    extra_data: ExtraData = None,
    extra_share: ExtraShare = None,
    data_dir: DataDir = None,
    download: Download = None,
    seed: Annotated[Optional[int], typer.Option(help="Of every random draw. [default: 0]")] = None,
    precision: Precision = None,
    device: Device = None,
    compile: Annotated[Optional[bool], typer.Option("--compile", help="Use torch.compile.")] = None,
    workers: Workers = None,
    track: Annotated[Pairs, typer.Option(help="Trackers to tell each epoch's numbers: tensorboard, wandb, ...")] = None,
    test_attack: TestAttack = None,
    test_examples: TestExamples = None,
    config: Annotated[
        Optional[Path], typer.Option(help="YAML file with any of these; the command line overrides it.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --output; its settings need no repeating.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model with a defense, then measure it on the test split."""
    given = {
        "model": model,
        "method": method,
        "data": data,
        "output": output,
        "eps": eps,
        "norm": norm,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "recipe_args": pairs(set_, "--set") or None,
        "method_args": pairs([item for item in option or [] if not _dotted(item)], "--option") or None,
        "modifiers": _modifiers(_words(modifier), [item for item in option or [] if _dotted(item)]) or None,
        "activation": activation,
        "model_kwargs": pairs(model_kwargs, "--model-kwargs") or None,
        "pretrained": pretrained,
        "stem": stem,
        "image_size": image_size,
        "extra_data": extra_data,
        "extra_share": extra_share,
        "data_dir": data_dir,
        "download": download,
        "seed": seed,
        "precision": precision,
        "device": device,
        "compile": compile,
        "workers": workers,
        "track": track,
        "test_examples": test_examples,
        "test_attacks": [] if test_attack == ["none"] else test_attack,
    }
    arguments = _merge(config, {name: value for name, value in given.items() if value is not None}, resume)
    from timm_robust.api import train as run
    from timm_robust.result import overfitting_line

    try:
        result = run(**arguments, resume=resume, quiet=quiet)
    except RunFailed as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        where = arguments.get("output") or "the run's folder"
        _stop(f"interrupted; continue with: timm-robust train --resume --output {where}", 130)
    if result.evaluation:
        _print_accuracies(result.evaluation, f"{arguments.get('model', 'resnet18')} on the test split, {result.threat}")
    out = result.output
    typer.echo(overfitting_line(result.history))
    typer.echo(
        f"\nbest checkpoint: {out}/best   all records: {out}\n"
        f"next:\n"
        f"  timm-robust evaluate {out} --attack pgd-50-10 autoattack --json {out}/record.json\n"
        f"  python -c \"import timm_robust; model = timm_robust.load('{out}')\"   # images in [0, 1] -> logits"
    )


@app.command(
    epilog="Example: timm-robust compare --methods fgsm,n-fgsm,moat -o moat.stages=r2 --seeds 0,1,2 --epochs 15 "
    "--data photos/ --output runs/three"
)
def compare(
    methods: Annotated[
        Pairs, typer.Option(help="Defenses, as fgsm,n-fgsm,sat or one by one; `timm-robust methods` lists them.")
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
        Pairs, typer.Option("--option", "-o", help="Options of one method: -o trades.beta=5 moat.stages=r2")
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
        "methods": _words(methods),
        "model": model,
        "data": data,
        "seeds": [_whole(word) for word in _words(seeds) or []] or None,
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
    from timm_robust.comparison import compare as run
    from timm_robust.comparison import default_output, read_asked

    if resume and output is not None:
        arguments = {**read_asked(output), **arguments}
    elif not resume:
        arguments.setdefault("output", default_output(arguments.get("model"), arguments.get("data")))
    try:
        result = run(**{"methods": [], **arguments}, resume=resume, quiet=quiet)
    except KeyboardInterrupt:
        _stop(f"interrupted; continue with: timm-robust compare --resume --output {arguments['output']}", 130)
    _print_comparison(result)
    if result.failed:
        told = f"{len(result.failed)} of {len(result.runs)} runs failed"
        _stop(f"{told}; try them again with: timm-robust compare --resume --output {result.output}", 1)


def _dotted(item: str) -> bool:
    """Whether an option names whose it is: `awp.gamma=0.01`."""
    return "." in item.partition("=")[0]


def _modifiers(names: list[str] | None, options: list[str]) -> dict[str, dict[str, Any]]:
    """`["awp"]` and `["awp.gamma=0.01"]` as {"awp": {"gamma": 0.01}}.

    Raises:
        UserError: an option of a modifier that the run does not have.
    """
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names or []}
    for name, values in by_method(options).items():
        if name not in chosen:
            raise UserError(f"--option {name}.{next(iter(values))} belongs to {name!r}: add --modifier {name}")
        chosen[name] = values
    return chosen


def by_method(given: Pairs) -> dict[str, dict[str, Any]]:
    """`["moat.stages=r2"]` as {"moat": {"stages": "r2"}}.

    Raises:
        UserError: an item without method, name or `=`.
    """
    out: dict[str, dict[str, Any]] = {}
    for full, value in pairs(given, "--option").items():
        method, _, name = full.partition(".")
        if not method or not name:
            raise UserError(f"--option {full!r} names no method: expected METHOD.name=value such as moat.stages=r2")
        out.setdefault(method, {})[name] = value
    return out


def _words(given: Pairs) -> list[str] | None:
    """`["a,b", "c"]` as ["a", "b", "c"]."""
    return given and [word.strip() for item in given for word in item.split(",") if word.strip()]


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise UserError(f"seed {word!r} is no whole number: expected seeds such as 0,1,2") from None


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


def _merge(config: Path | None, given: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Command line over YAML; a resumed run takes what is not said from its own manifest."""
    values = dict(given)
    if config is not None:
        values = {**_read_config(config), **values}
    if resume and "output" in values:
        from timm_robust.manifest import read_asked

        values = {**read_asked(Path(values["output"])), **values}
    return values


def _read_config(path: Path) -> dict[str, Any]:
    import inspect

    import yaml

    from timm_robust import api
    from timm_robust.errors import unknown

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: expected lines such as `model: resnet18`")
    known = [name for name in inspect.signature(api.train).parameters if name not in ("resume", "quiet")]
    content = {str(name).replace("-", "_"): value for name, value in content.items()}
    for name in content:
        if name not in known:
            raise unknown(f"setting in {path}", name, known)
    return content


@app.command(
    epilog="Example: timm-robust evaluate runs/first --attack pgd-50-10 autoattack --n-examples 256 --json record.json"
)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder (its best checkpoint) or a checkpoint folder.")],
    data: Annotated[
        Optional[str], typer.Option(help="As in train. [default: what the checkpoint was trained on]")
    ] = None,
    attack: Annotated[
        Pairs,
        typer.Option(help="clean, fgsm, pgd-K-R (K steps, R restarts), autoattack. [default: clean pgd-50-10]"),
    ] = None,
    n_examples: Annotated[Optional[int], typer.Option(help="The first so many test images. [default: all]")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once; AutoAttack's verdicts depend on it.")] = 250,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    eps: Annotated[Optional[str], typer.Option(help="Radius such as 8/255. [default: that of the training]")] = None,
    norm: Annotated[Optional[str], typer.Option(help="Linf or L2. [default: that of the training]")] = None,
    data_dir: Annotated[Optional[str], typer.Option(help="Root folder of timm data sets.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Let timm data sets be fetched.")] = False,
    device: Annotated[Optional[str], typer.Option(help="cpu stays off a GPU.")] = None,
    json_: Annotated[Optional[Path], typer.Option("--json", help="Write the record here.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure a checkpoint on the test split; no plugin is loaded for that."""
    from timm_robust.api import evaluate as run

    result = run(
        checkpoint,
        data,
        attacks=attack or ["clean", "pgd-50-10"],
        n_examples=n_examples,
        batch_size=batch_size,
        seed=seed,
        eps=eps,
        norm=norm,
        data_dir=data_dir,
        download=download,
        device=device,
        json=json_,
        quiet=quiet,
    )
    _print_accuracies(result, f"{result.checkpoint} on {result.data}, {result.threat}, seed {seed}")
    if json_:
        typer.echo(f"record: {json_}")


@app.command(epilog="Example: timm-robust report runs/pgd runs/sglr --out report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, finished or not.")],
    out: Annotated[Path, typer.Option(help="The page; what is there is replaced.")] = Path("report.html"),
) -> None:
    """Write a page about robust overfitting: a table of best and last epochs, and curves by epoch.

    Runs trained with --set diagnose=N also show robust accuracy on training and test images, and what is memorised.
    """
    from timm_robust.report.page import make_report

    typer.echo(f"report: {make_report(runs, out)}")


def _print_accuracies(evaluation: Any, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name, justify in (("attack", "left"), ("accuracy", "right"), ("test images", "right"), ("seconds", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, value, n in evaluation.rows():
        seconds = evaluation.attacks.get(name, {}).get("seconds")
        table.add_row(name, f"{value:.2%}", str(n), "" if seconds is None else f"{seconds:.1f}")
    console = Console()
    console.print(table)
    for entry in evaluation.attacks.values():
        for flag in entry.get("flags", []):
            console.print(f"warning: {flag}", style="yellow", markup=False)


@app.command()
def methods(
    name: Annotated[Optional[str], typer.Argument(help="Explain this method and its options.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the training methods that plugins offer, or explain one."""
    from timm_robust import listing

    listing.methods(name, json_)


@app.command()
def modifiers(
    name: Annotated[Optional[str], typer.Argument(help="Explain this modifier and its options.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what composes with any method, such as weight perturbation, or explain one."""
    from timm_robust import listing

    listing.modifiers(name, json_)


@app.command()
def plugins(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List installed plugins, with their state and errors."""
    from timm_robust import listing

    listing.plugins(json_)


@app.command()
def recipes(
    name: Annotated[Optional[str], typer.Argument(help="Explain this recipe line by line.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the named training settings, or explain one."""
    from timm_robust import listing

    listing.recipes(name, json_)


@app.command()
def models(
    pattern: Annotated[Optional[str], typer.Argument(help="Wildcard such as 'resnet*' over all timm names.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List networks that plugins add to timm; with a pattern, search all of timm's (loads timm)."""
    from timm_robust import listing

    listing.models(pattern, json_)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from timm_robust import __version__

        typer.echo(json.dumps(__version__).strip('"'))
        raise typer.Exit
