"""The application: what every command shares, and how a mistake ends. Torch-free."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from timm_robust.cli.parsing import spread
from timm_robust.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Adversarial training for any timm image classifier, measured with AutoAttack.",
    epilog="Start with: timm-robust train --model resnet18 --method sat --output runs/first",
)


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit status 2, a failed run is one sentence and 1."""
    _quiet_warnings()
    try:
        app(args=spread(sys.argv[1:]), prog_name="timm-robust")
    except UserError as error:
        stop(str(error), 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        stop(f"{_first_line(error)}: pass a smaller --batch-size; what was saved or measured so far is kept", 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")


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


def stop(message: str, status: int) -> NoReturn:
    """Ends the program with a sentence."""
    Console(stderr=True, highlight=False).print(f"timm-robust: {message}", soft_wrap=True, markup=False)
    raise SystemExit(status)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from timm_robust import __version__

        typer.echo(json.dumps(__version__).strip('"'))
        raise typer.Exit
