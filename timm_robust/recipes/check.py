"""Checks of the recipe settings that plugins declare: a mistake in them is the plugin author's, not the user's.

They are here and not in `timm_robust.plugin`, which is a lower layer and knows no recipe settings. Torch-free.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from timm_robust.errors import PluginError, UserError, nearest
from timm_robust.options import check_value, parse_options
from timm_robust.plugin import DefenseSpec, ModifierSpec, RecipeSpec, get_manager
from timm_robust.recipes.recipe import Recipe, require_peak

SETTINGS = {field.name: field for field in fields(Recipe)}
"""Recipe settings by name."""

USABLE = (
    *("--method", "--option", "-o", "--modifier", "--recipe", "--set", "--activation", "--stem", "--model-kwargs"),
    *("--norm", "--eps", "--extra-data", "--extra-share", "--precision"),
)
"""Options of `timm-robust train` that a recipe's `use` may name."""


def recipe_values(spec: RecipeSpec) -> dict[str, Any]:
    """Values of a recipe, in the types of their settings.

    Raises:
        PluginError: unknown setting, or a value out of its bounds.
    """
    owner = f"recipe {spec.name!r}"
    values = _settings(spec.values, f"{owner} sets")
    try:
        require_peak(replace(Recipe(), **values))
    except UserError as error:
        raise PluginError(f"{owner} sets a bad value: {error}") from None
    return values


def recommended_values(spec: DefenseSpec) -> tuple[dict[str, Any], str | None]:
    """Recipe settings that a method recommends, and the activation to swap in.

    Raises:
        PluginError: unknown setting, or a value out of its bounds.
    """
    settings = dict(spec.recommends)
    activation = settings.pop("activation", None)
    return _settings(settings, f"method {spec.name!r} recommends", others=("activation",)), activation


def parse_use(spec: RecipeSpec) -> dict[str, list[str]]:
    """Options of a recipe's `use` with their values; methods, modifiers, their options and settings must exist.

    Raises:
        PluginError: `use` cannot be typed, or does not name the recipe.
    """
    if not spec.use:
        return {}
    owner = f"use of recipe {spec.name!r}"
    given: dict[str, list[str]] = {}
    try:
        words = shlex.split(spec.use)
    except ValueError as error:
        raise PluginError(f"{owner} is not valid: {error}") from None
    for word in words:
        if word.startswith("-"):
            if word not in USABLE:
                raise PluginError(f"{owner} has {word!r}: expected some of {', '.join(USABLE)}")
            values = given.setdefault(word, [])
        elif given:
            values.append(word)
        else:
            raise PluginError(f"{owner} begins with {word!r}: expected an option such as --method")
    if given.get("--recipe") != [spec.name]:
        raise PluginError(f"{owner} does not name it: expected --recipe {spec.name}")
    try:
        _require_options(given)
        _settings(_pairs(given.get("--set", [])), f"{owner} sets")
    except UserError as error:
        raise PluginError(f"{owner} is not valid: {error}") from None
    return given


def _require_options(given: Mapping[str, list[str]]) -> None:
    """Looks up methods and modifiers, and parses their options.

    Raises:
        UserError: one of them does not exist, or an option belongs to none of them.
    """
    manager = get_manager()
    options: dict[str, dict[str, str]] = {}
    for name, value in _pairs([*given.get("--option", []), *given.get("-o", [])]).items():
        prefix, _, option = name.rpartition(".")
        options.setdefault(prefix, {})[option] = value
    for method in given.get("--method", []):
        parse_options(manager.load_config(method), options.pop("", {}), owner=f"method {method!r}")
    for modifier in given.get("--modifier", []):
        config = manager.load_config(modifier, ModifierSpec)
        parse_options(config, options.pop(modifier, {}), owner=f"modifier {modifier!r}")
    for prefix, unclaimed in options.items():
        missing = f"--modifier {prefix}" if prefix else "--method"
        raise UserError(f"option {next(iter(unclaimed))!r} belongs to no method or modifier in it: add {missing}")


def _pairs(items: list[str]) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise UserError(f"{item!r} is no assignment: expected name=value")
    return dict(item.split("=", 1) for item in items)


def _settings(given: Mapping[str, Any], clause: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Recipe settings in their types; `clause` begins the complaints, `others` are allowed elsewhere."""
    values = {}
    for name, value in given.items():
        if name not in SETTINGS:
            close = nearest(name, [*SETTINGS, *others], n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise PluginError(f"{clause} {name!r}, which is no recipe setting{hint}")
        try:
            values[name] = check_value(SETTINGS[name], value, owner="recipe setting")
        except UserError as error:
            raise PluginError(f"{clause} a bad value: {error}") from None
    return values
