"""`timm-robust train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from timm_robust.api.settings import SETTINGS
from timm_robust.cli.accuracies import print_accuracies
from timm_robust.cli.app import app, stop
from timm_robust.cli.arguments import arguments_of, with_settings
from timm_robust.cli.parsing import by_owner
from timm_robust.errors import RunFailed, UserError, unknown
from timm_robust.runs.folder import read_asked
from timm_robust.runs.history import overfitting_line


@app.command(epilog="Example: timm-robust train --model vit_tiny_patch16_224 --method trades -o beta=5 --data photos/")
@with_settings(SETTINGS)
def train(
    *,
    config: Annotated[
        Optional[Path],
        typer.Option(help="YAML file with any of these options as keys; the command line overrides it."),
    ] = None,
    **given: Any,
) -> None:
    """Train a model adversarially, then measure it on the test split."""
    arguments = _with_config(config, arguments_of(given))
    if arguments.get("resume") and "output" in arguments:
        arguments = {**_started_with(Path(arguments["output"])), **arguments}
    from timm_robust.api.train import train as run

    try:
        result = run(**arguments)
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


def _with_config(config: Path | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """The command line over the YAML file; options of modifiers go to their modifiers."""
    file = {} if config is None else _read_config(config)
    merged = {
        name: {**file.get(name, {}), **value} if isinstance(value, dict) else value for name, value in arguments.items()
    }
    return _assign_options({**file, **merged})


def _assign_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Moves options such as `awp.gamma` from the method's to those of the modifier.

    Raises:
        UserError: the run does not have that modifier.
    """
    given = arguments.pop("method_args", {})
    own = {name: value for name, value in given.items() if "." not in name}
    modifiers: dict[str, dict[str, Any]] = {name: {} for name in arguments.pop("modifiers", [])}
    for name, values in by_owner({full: value for full, value in given.items() if "." in full}).items():
        if name not in modifiers:
            raise UserError(f"--option {name}.{next(iter(values))} belongs to {name!r}: add --modifier {name}")
        modifiers[name] = values
    return arguments | ({"method_args": own} if own else {}) | ({"modifiers": modifiers} if modifiers else {})


def _started_with(output: Path) -> Mapping[str, Any]:
    asked = read_asked(output)
    for name in asked:
        if name not in SETTINGS:
            raise UserError(f"the run in {output} was started by another version, with {name!r} that is not known here")
    return asked


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: expected lines such as `model: resnet18`")
    keys = {one.option: name for name, one in SETTINGS.items() if one.recorded or name == "output"}
    found = {str(key).replace("_", "-"): value for key, value in content.items()}
    for key in found:
        if key not in keys:
            raise unknown(f"setting in {path}", key, keys)
    return arguments_of({keys[key]: value for key, value in found.items()})
