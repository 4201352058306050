"""The application: what all commands have in common, and how errors end. Torch-free."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from timm_robust.cli.arguments import FILE
from timm_robust.cli.parsing import expand_lists, is_stdout
from timm_robust.errors import UserError
from timm_robust.utils.files import require_place, write_text


class Commands(TyperGroup):
    """The commands. Their list options take several values in a row, and `--json` takes a file or none."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        options = [one for one in command.params if one.param_type_name == "option"] if command else []
        several = {spelling for one in options if one.multiple for spelling in one.opts}
        optional = {spelling for one in options if one.metavar == FILE for spelling in one.opts}
        return name, command, expand_lists(rest, several, optional)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Adversarial training for any timm image classifier, measured with AutoAttack.",
    epilog="Start with: timm-robust train --model resnet18 --method sat --output runs/first",
)


def main() -> None:
    """Entry point: a user's error is one sentence and exit status 2, a failed run is one sentence and 1."""
    _quiet_warnings()
    try:
        app(prog_name="timm-robust")
    except UserError as error:
        stop(str(error), 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        stop(f"{_first_line(error)}: pass a smaller --batch-size; what was saved or measured so far is kept", 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")


def _quiet_warnings() -> None:
    """Shows each warning as one line, and hides deprecations inside other packages; `python -W` overrides it."""
    if sys.warnoptions:
        return
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    console = Console(stderr=True, highlight=False)

    def show(message: Warning | str, *_: Any) -> None:
        console.print(f"warning: {message}", style="yellow", soft_wrap=True, markup=False)

    warnings.showwarning = show  # type: ignore[assignment]


def emit_json(file: Path, content: Any) -> None:
    """Writes JSON to a file, or prints it where the file is `-`.

    Raises:
        UserError: the folder of the file does not exist.
    """
    text = json.dumps(content, indent=2, default=str)
    if is_stdout(file):
        typer.echo(text)
        return
    require_place(file, "JSON file")
    write_text(file, text + "\n")
    typer.echo(f"JSON: {file}")


@contextlib.contextmanager
def record_file(file: Path | None) -> Iterator[Path | None]:
    """File for the record of a measurement; `--json` without a file prints the record instead."""
    if file is None or not is_stdout(file):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, "record.json")
        yield temporary
        typer.echo(temporary.read_text().rstrip())


def stop(message: str, status: int) -> NoReturn:
    """Ends the program with a sentence and an exit status."""
    Console(stderr=True, highlight=False).print(f"timm-robust: {message}", soft_wrap=True, markup=False)
    raise SystemExit(status)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from timm_robust import __version__

        typer.echo(json.dumps(__version__).strip('"'))
        raise typer.Exit
