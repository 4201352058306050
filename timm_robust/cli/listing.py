"""What the listing commands print, such as `methods` and `recipes`. Only a search of timm's names loads timm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from timm_robust.errors import UserError, unknown
from timm_robust.options import OptionInfo, describe
from timm_robust.plugin import DistillerSpec, ModifierSpec, get_manager
from timm_robust.plugin.registry import RegisteredSpec
from timm_robust.recipes.presets import PRESETS
from timm_robust.recipes.recipe import Recipe


def methods(name: str | None, as_json: bool) -> None:
    """All methods, or one with its options."""
    manager = get_manager()
    if name is None:
        rows = manager.method_rows()
        _show(rows, ("name", "summary", "reference", "distribution"), as_json, "training methods")
        if not as_json:
            print("\nmore about one: timm-robust methods NAME      train with it: timm-robust train --method NAME")
        return
    provided = manager.defense(name)
    _explain(provided, describe(manager.load_config(name)), "-o NAME=VALUE or method_args={NAME: VALUE}", as_json)
    if provided.spec.recommends and not as_json:
        told = ", ".join(f"{key}={value}" for key, value in provided.spec.recommends.items())
        print(f"recommends {told}; over any recipe, but your own --epochs, --lr, --activation and --set win")


def modifiers(name: str | None, as_json: bool) -> None:
    """All modifiers, or one with its options."""
    manager = get_manager()
    if name is None:
        rows = [provided.row() for provided in manager.modifiers().values()]
        _show(
            rows, ("name", "summary", "reference", "distribution"), as_json, "modifiers, which compose with any method"
        )
        if not as_json:
            print("\nmore about one: timm-robust modifiers NAME      use it: timm-robust train ... --modifier NAME")
        return
    provided = manager.modifier(name)
    options = describe(manager.load_config(name, ModifierSpec))
    told = f"-o {name}.NAME=VALUE or modifiers={{{name!r}: {{NAME: VALUE}}}}"
    _explain(provided, options, told, as_json)


def distillers(name: str | None, as_json: bool) -> None:
    """All distillers, or one with its options."""
    manager = get_manager()
    if name is None:
        rows = [provided.row() for provided in manager.distillers().values()]
        _show(rows, ("name", "summary", "reference", "distribution"), as_json, "distillers, which make small data sets")
        if not as_json:
            print("\nmore about one: timm-robust distillers NAME      use it: timm-robust distill --method NAME ...")
        return
    provided = manager.distiller(name)
    options = describe(manager.load_config(name, DistillerSpec))
    _explain(provided, options, "-o NAME=VALUE or method_args={NAME: VALUE}", as_json)
    if provided.spec.use and not as_json:
        print(f"train with its images: timm-robust train --model MODEL --data FOLDER {provided.spec.use}")


def _explain(provided: RegisteredSpec[Any], options: Sequence[OptionInfo], told: str, as_json: bool) -> None:
    """One method, modifier or distiller with its options, and how to give them."""
    if as_json:
        recommends = dict(getattr(provided.spec, "recommends", {}))
        _print_json(provided.row() | {"options": [asdict(option) for option in options], "recommends": recommends})
        return
    print(f"{provided.spec.name}: {provided.spec.summary}\n{provided.spec.reference}\nfrom {provided.origin}\n")
    _show_options(options, f"options, as {told}")


def plugins(as_json: bool) -> None:
    """Every plugin met, with its state."""
    rows = get_manager().report()
    _show(rows, ("name", "kind", "distribution", "version", "status", "offers", "error"), as_json, "plugins")


def recipes(name: str | None, as_json: bool) -> None:
    """All presets, or one line by line."""
    if name is None:
        rows = [
            {"name": preset.name, "summary": preset.summary, "source": preset.source} for preset in PRESETS.values()
        ]
        _show(rows, ("name", "summary", "source"), as_json, "recipes")
        return
    if name not in PRESETS:
        raise unknown("recipe", name, PRESETS)
    preset = PRESETS[name]
    explained = describe(Recipe)
    values = {field.name: preset.values.get(field.name, field.default) for field in fields(Recipe)}
    sources = {setting: preset.source_of(setting) for setting in values}
    about = {key: getattr(preset, key) for key in ("name", "summary", "source", "use", "departs")}
    if as_json:
        _print_json({**about, "values": values, "sources": sources})
        return
    print(f"{name}: {preset.summary}\nsource: {preset.source}")
    if preset.use:
        print(f"train with it: timm-robust train --model MODEL --data DATA {preset.use}")
    if preset.departs:
        print(f"departs from its source: {preset.departs}")
    print()
    rows = [
        {
            "setting": info.name,
            "value": values[info.name],
            "source": "as above" if sources[info.name] == preset.source else sources[info.name],
            "meaning": info.help,
        }
        for info in explained
    ]
    _show(rows, ("setting", "value", "source", "meaning"), False, "settings, each changeable with --set NAME=VALUE")


def models(pattern: str | None, as_json: bool) -> None:
    """Networks that plugins add, or with a pattern every name that timm knows."""
    manager = get_manager()
    if pattern is None:
        rows = [
            {"name": model, "summary": provided.spec.summary, "distribution": provided.distribution}
            for provided in manager.model_specs().values()
            for model in provided.spec.models
        ]
        _show(rows, ("name", "summary", "distribution"), as_json, "networks that plugins add to timm")
        if not as_json:
            print("\nevery timm model works too; search their names: timm-robust models 'resnet*'")
        return
    manager.register_models()
    import timm

    names = timm.list_models(pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
    if not names:
        raise UserError(f"no timm model matches {pattern!r}: try a wildcard such as 'resnet*'")
    if as_json:
        _print_json([{"name": name} for name in names])
    else:
        print("\n".join(names))


def _show_options(options: Sequence[OptionInfo], title: str) -> None:
    rows = [asdict(option) for option in options]
    if rows:
        _show(rows, ("name", "type", "default", "unit", "range", "help", "source"), False, title)
    else:
        print("no options")


def _show(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool, title: str) -> None:
    if as_json:
        _print_json(list(rows))
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


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, default=str))
