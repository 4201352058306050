"""Options that several commands have in common; those of `train` and `compare` are derived from `TrainSettings`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from timm_robust.api.settings import SETTINGS, Setting
from timm_robust.cli.parsing import parse_pairs, split_commas
from timm_robust.errors import UserError

FILE = "[FILE]"
"""Placeholder of an option whose value may be left out; see `cli.app.Commands`."""

Command = Callable[..., None]


def with_settings(names: Iterable[str]) -> Callable[[Command], Command]:
    """Gives a command an option for each of these settings.

    `--help` shows them between the command's positional and its keyword-only parameters. The command receives their
    values as `**given`, None where the user said nothing; `arguments_of` makes arguments of them.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        first = [one for one in own if one.kind is not one.KEYWORD_ONLY]
        last = [one for one in own if one.kind is one.KEYWORD_ONLY]
        options = [_parameter(SETTINGS[name]) for name in names if name not in signature.parameters]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*first, *options, *last)]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameter(one: Setting) -> inspect.Parameter:
    several = one.parse in (list, dict)
    option = typer.Option(
        # what a YAML file or a manifest switches on can be switched off again
        f"--{one.option}/--no-{one.option}" if one.parse is bool and one.recorded else f"--{one.option}",
        *([f"-{one.short}"] if one.short else []),
        help=_help(one),
        metavar="NAME ..." if one.parse is list else "NAME=VALUE ..." if one.parse is dict else None,
        rich_help_panel=one.group or None,
    )
    kind: Any = Optional[list[str] if several else one.parse]
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _help(one: Setting) -> str:
    shown = one.unset
    if one.default is True:
        shown = "on"
    elif isinstance(one.default, tuple):
        shown = " ".join(one.default)
    elif one.default is not None and one.default is not False:
        shown = f"{one.default:g}" if isinstance(one.default, float) else str(one.default)
    return f"{one.help[0].upper()}{one.help[1:]}{one.more}." + (f" [default: {shown}]" if shown else "")


def arguments_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `train` from values as typed, of the command line or of a YAML file; what is None is left out.

    Raises:
        UserError: a value of another kind than the option takes.
    """
    return {name: _value(SETTINGS[name], value) for name, value in given.items() if value is not None}


def _value(one: Setting, value: Any) -> Any:
    if one.parse is dict and isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Mapping) or (isinstance(value, list) and one.parse not in (list, dict)):
        raise UserError(f"{one.option} is {value!r}: expected {'a list' if one.parse is list else 'one value'}")
    if one.parse not in (list, dict):
        return value
    items = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if one.parse is dict:
        return parse_pairs(items, f"--{one.option}")
    words = split_commas(items)
    return [] if words == ["none"] else words


# options of the commands that do not train

DataDir = Annotated[Optional[str], typer.Option(help="Root folder of timm datasets.")]
Device = Annotated[
    Optional[str], typer.Option(help="Torch device; cpu stays off the GPU. [default: the best available]")
]
Download = Annotated[bool, typer.Option("--download", help="Allow datasets and zoo weights to be downloaded.")]
Examples = Annotated[Optional[int], typer.Option(help="Number of test images, the first ones. [default: all]")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Checkpoint = Annotated[Path, typer.Argument(help="Folder of a run (its best checkpoint) or of a checkpoint.")]
EvalData = Annotated[Optional[str], typer.Option(help="Dataset, as in train. [default: that of the training]")]
EvalBatchSize = Annotated[int, typer.Option(help="Images per forward pass.")]
Eps = Annotated[Optional[str], typer.Option(help="Radius, such as 8/255. [default: that of the training]")]
Norm = Annotated[Optional[str], typer.Option(help="Norm: Linf, L2 or L1. [default: that of the training]")]
JSON_HELP = "Write JSON to this file; without one, print only JSON."
Json = Annotated[Optional[Path], typer.Option("--json", metavar=FILE, help=JSON_HELP)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress output.")]
