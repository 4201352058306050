"""What is installed: methods, modifiers, distillers, plugins, recipes, models."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from timm_robust.cli.app import app


@app.command()
def methods(
    name: Annotated[Optional[str], typer.Argument(help="Explain this method and its options.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the training methods that plugins offer, or explain one."""
    from timm_robust.cli import listing

    listing.methods(name, json_)


@app.command()
def modifiers(
    name: Annotated[Optional[str], typer.Argument(help="Explain this modifier and its options.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what composes with any method, such as weight perturbation, or explain one."""
    from timm_robust.cli import listing

    listing.modifiers(name, json_)


@app.command()
def distillers(
    name: Annotated[Optional[str], typer.Argument(help="Explain this distiller and its options.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what makes small data sets of large ones, or explain one."""
    from timm_robust.cli import listing

    listing.distillers(name, json_)


@app.command()
def plugins(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List installed plugins, with their state and errors."""
    from timm_robust.cli import listing

    listing.plugins(json_)


@app.command()
def recipes(
    name: Annotated[Optional[str], typer.Argument(help="Explain this recipe line by line.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the named training settings, or explain one."""
    from timm_robust.cli import listing

    listing.recipes(name, json_)


@app.command()
def models(
    pattern: Annotated[Optional[str], typer.Argument(help="Wildcard such as 'resnet*' over all timm names.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List networks that plugins add to timm; with a pattern, search all of timm's (loads timm)."""
    from timm_robust.cli import listing

    listing.models(pattern, json_)
