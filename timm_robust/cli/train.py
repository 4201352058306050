"""`timm-robust train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from timm_robust.cli.accuracies import print_accuracies
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
from timm_robust.cli.parsing import Pairs, dotted, modifiers_of, pairs, words
from timm_robust.errors import RunFailed, UserError


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
        "method_args": pairs([item for item in option or [] if not dotted(item)], "--option") or None,
        "modifiers": modifiers_of(words(modifier), [item for item in option or [] if dotted(item)]) or None,
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
    from timm_robust.api.train import train as run
    from timm_robust.runs.history import overfitting_line

    try:
        result = run(**arguments, resume=resume, quiet=quiet)
    except RunFailed as error:
        stop(str(error), 1)
    except KeyboardInterrupt:
        where = arguments.get("output") or "the run's folder"
        stop(f"interrupted; continue with: timm-robust train --resume --output {where}", 130)
    if result.evaluation:
        print_accuracies(result.evaluation, f"{arguments.get('model', 'resnet18')} on the test split, {result.threat}")
    out = result.output
    typer.echo(overfitting_line(result.history))
    typer.echo(
        f"\nbest checkpoint: {out}/best   all records: {out}\n"
        f"next:\n"
        f"  timm-robust evaluate {out} --attack pgd-50-10 autoattack --json {out}/record.json\n"
        f"  python -c \"import timm_robust; model = timm_robust.load('{out}')\"   # images in [0, 1] -> logits"
    )


def _merge(config: Path | None, given: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Command line over YAML; a resumed run takes what is not said from its own manifest."""
    values = dict(given)
    if config is not None:
        values = {**_read_config(config), **values}
    if resume and "output" in values:
        from timm_robust.runs.folder import read_asked

        values = {**read_asked(Path(values["output"])), **values}
    return values


def _read_config(path: Path) -> dict[str, Any]:
    import inspect

    import yaml

    from timm_robust.api.train import train
    from timm_robust.errors import unknown

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: expected lines such as `model: resnet18`")
    known = [name for name in inspect.signature(train).parameters if name not in ("resume", "quiet")]
    content = {str(name).replace("-", "_"): value for name, value in content.items()}
    for name in content:
        if name not in known:
            raise unknown(f"setting in {path}", name, known)
    return content
