"""Listings of methods, modifiers, distillers, plugins, recipes and models. Torch-free; only a search of timm's names
loads timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from timm_robust.cli.app import app, emit_json
from timm_robust.cli.arguments import FILE, JSON_HELP
from timm_robust.cli.parsing import parse_json_file
from timm_robust.errors import UserError
from timm_robust.options import OptionInfo, describe
from timm_robust.plugin import DistillerSpec, ModifierSpec, RecipeSpec, get_manager
from timm_robust.plugin.registry import RegisteredSpec
from timm_robust.recipes.presets import all_recipes, find_recipe, values_of
from timm_robust.recipes.recipe import Recipe

ListJson = Annotated[Optional[Path], typer.Option("--json", metavar=FILE, help=JSON_HELP, callback=parse_json_file)]

COLUMNS = ("name", "summary", "reference", "distribution")


@app.command()
def methods(
    name: Annotated[Optional[str], typer.Argument(help="Method to explain, with its options.")] = None,
    json_: ListJson = None,
) -> None:
    """List the training methods that plugins offer, or explain one."""
    manager = get_manager()
    if name is None:
        _show(manager.method_rows(), COLUMNS, json_, "training methods")
        _hint(json_, "methods NAME", "train with it: timm-robust train --method NAME")
        return
    found = manager.defense(name)
    _explain(found, describe(manager.load_config(name)), "-o NAME=VALUE or method_args={NAME: VALUE}", json_)
    if found.spec.recommends and json_ is None:
        values = ", ".join(f"{key}={value}" for key, value in found.spec.recommends.items())
        print(f"recommends {values}; overrides any recipe, and is overridden by --epochs, --lr, --activation and --set")


@app.command()
def modifiers(
    name: Annotated[Optional[str], typer.Argument(help="Modifier to explain, with its options.")] = None,
    json_: ListJson = None,
) -> None:
    """List the modifiers, which compose with any method, such as weight perturbation; or explain one."""
    manager = get_manager()
    if name is None:
        rows = [found.row() for found in manager.modifiers().values()]
        _show(rows, COLUMNS, json_, "modifiers, which compose with any method")
        _hint(json_, "modifiers NAME", "use it: timm-robust train ... --modifier NAME")
        return
    options = describe(manager.load_config(name, ModifierSpec))
    usage = f"-o {name}.NAME=VALUE or modifiers={{{name!r}: {{NAME: VALUE}}}}"
    _explain(manager.modifier(name), options, usage, json_)


@app.command()
def distillers(
    name: Annotated[Optional[str], typer.Argument(help="Distiller to explain, with its options.")] = None,
    json_: ListJson = None,
) -> None:
    """List the distillers, which make small data sets of large ones; or explain one."""
    manager = get_manager()
    if name is None:
        rows = [found.row() for found in manager.distillers().values()]
        _show(rows, COLUMNS, json_, "distillers, which make small data sets")
        _hint(json_, "distillers NAME", "use it: timm-robust distill --method NAME ...")
        return
    found = manager.distiller(name)
    options = describe(manager.load_config(name, DistillerSpec))
    _explain(found, options, "-o NAME=VALUE or method_args={NAME: VALUE}", json_)
    if found.spec.use and json_ is None:
        print(f"train on its images: timm-robust train --model MODEL --data FOLDER {found.spec.use}")


@app.command()
def plugins(json_: ListJson = None) -> None:
    """List installed plugins, with their status and errors."""
    columns = ("name", "kind", "distribution", "version", "status", "offers", "error")
    _show(get_manager().report(), columns, json_, "plugins")


@app.command()
def recipes(
    name: Annotated[Optional[str], typer.Argument(help="Recipe to explain, setting by setting.")] = None,
    json_: ListJson = None,
) -> None:
    """List the named training settings, or explain one."""
    if name is None:
        rows = [_recipe_row(found) for found in all_recipes().values()]
        _show(rows, ("name", "summary", "source", "distribution", "error"), json_, "recipes")
        _hint(json_, "recipes NAME", "train with it: timm-robust train --recipe NAME")
        return
    found = find_recipe(name)
    values = {field.name: field.default for field in fields(Recipe)} | values_of(found)
    if json_ is not None:
        about = {key: getattr(found.spec, key) for key in ("name", "summary", "source", "use", "departs")}
        origin = {"distribution": found.distribution, "version": found.version}
        sources = {setting: found.spec.source_of(setting) for setting in values}
        emit_json(json_, {**about, **origin, "values": values, "sources": sources})
    else:
        _explain_recipe(found, values)


@app.command()
def models(
    pattern: Annotated[Optional[str], typer.Argument(help="Wildcard such as 'resnet*' over all timm names.")] = None,
    json_: ListJson = None,
) -> None:
    """List networks that plugins add to timm; with a pattern, search all timm models (loads timm)."""
    manager = get_manager()
    if pattern is None:
        rows = [
            {"name": model, "summary": found.spec.summary, "distribution": found.distribution}
            for found in manager.model_specs().values()
            for model in found.spec.models
        ]
        _show(rows, ("name", "summary", "distribution"), json_, "networks that plugins add to timm")
        if json_ is None:
            print("\nevery timm model works too; search their names: timm-robust models 'resnet*'")
        return
    manager.register_models()
    import timm

    names = timm.list_models(pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
    if not names:
        raise UserError(f"no timm model matches {pattern!r}: try a wildcard such as 'resnet*'")
    if json_ is not None:
        emit_json(json_, [{"name": name} for name in names])
    else:
        print("\n".join(names))


def _explain(found: RegisteredSpec[Any], options: Sequence[OptionInfo], usage: str, json_: Path | None) -> None:
    """One method, modifier or distiller with its options; `usage` says how to set them."""
    spec = found.spec
    if json_ is not None:
        recommends = dict(getattr(spec, "recommends", {}))
        emit_json(json_, found.row() | {"options": [asdict(option) for option in options], "recommends": recommends})
        return
    print(f"{spec.name}: {spec.summary}\n{spec.reference}\nfrom {found.origin}\n")
    if not options:
        print("no options")
        return
    columns = ("name", "type", "default", "unit", "range", "help", "source")
    _show([asdict(option) for option in options], columns, None, f"options, as {usage}")


def _recipe_row(found: RegisteredSpec[RecipeSpec]) -> dict[str, Any]:
    """Row of `recipes`; a recipe with bad values is listed with its error and does not hide the others."""
    row = found.row()
    row["source"] = row.pop("reference")
    try:
        values_of(found)
    except UserError as error:
        row |= {"status": "failed", "error": str(error)}
    return row


def _explain_recipe(found: RegisteredSpec[RecipeSpec], values: dict[str, Any]) -> None:
    """One recipe with the value, source and meaning of each setting."""
    spec = found.spec
    print(f"{spec.name}: {spec.summary}\nsource: {spec.source}\nfrom {found.origin}")
    if spec.use:
        print(f"train with it: timm-robust train --model MODEL --data DATA {spec.use}")
    if spec.departs:
        print(f"departs from its source: {spec.departs}")
    print()
    rows = []
    for info in describe(Recipe):
        source = spec.source_of(info.name)
        source = "as above" if source == spec.source else source
        rows.append({"setting": info.name, "value": values[info.name], "source": source, "meaning": info.help})
    title = "settings, each changeable with --set NAME=VALUE"
    _show(rows, ("setting", "value", "source", "meaning"), None, title)


def _hint(json_: Path | None, explain: str, use: str) -> None:
    if json_ is None:
        print(f"\nmore about one: timm-robust {explain}      {use}")


def _show(rows: Sequence[dict[str, Any]], columns: Sequence[str], json_: Path | None, title: str) -> None:
    """Prints rows as JSON, or as a table of those columns that have any text."""
    if json_ is not None:
        emit_json(json_, list(rows))
        return
    shown = [column for column in columns if any(_text(row.get(column)) for row in rows)]
    table = Table(title=title, title_justify="left", show_lines=False)
    for column in shown:
        table.add_column(column, no_wrap=column in ("name", "setting"))
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in shown))
    Console(highlight=False).print(table, markup=False)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
