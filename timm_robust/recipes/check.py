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


def require_use(spec: RecipeSpec) -> None:
    """Refuses a `use` that cannot be typed: its method, modifiers and options must exist, and it names the recipe.

    Raises:
        PluginError: what is wrong with it.
    """
    if not spec.use:
        return
    given: dict[str, list[str]] = {}
    for word in shlex.split(spec.use):
        if word.startswith("-"):
            values = given.setdefault(word, [])
        elif given:
            values.append(word)
        else:
            raise PluginError(f"use of recipe {spec.name!r} begins with {word!r}: expected an option such as --method")
    for option in given:
        if option not in USABLE:
            raise PluginError(f"use of recipe {spec.name!r} has {option!r}: expected some of {', '.join(USABLE)}")
    if given.get("--recipe") != [spec.name]:
        raise PluginError(f"use of recipe {spec.name!r} does not name it: expected --recipe {spec.name}")
    try:
        _parse_use(given)
        _settings(_pairs(given.get("--set", [])), f"use of recipe {spec.name!r} sets")
    except UserError as error:
        raise PluginError(f"use of recipe {spec.name!r} is not valid: {error}") from None


def _parse_use(given: Mapping[str, list[str]]) -> None:
    """Looks up methods and modifiers, and parses their options."""
    manager = get_manager()
    options = _pairs([*given.get("--option", []), *given.get("-o", [])])
    for method in given.get("--method", []):
        own = {name: value for name, value in options.items() if "." not in name}
        parse_options(manager.load_config(method), own, owner=f"method {method!r}")
    for modifier in given.get("--modifier", []):
        prefix = f"{modifier}."
        own = {name[len(prefix) :]: value for name, value in options.items() if name.startswith(prefix)}
        parse_options(manager.load_config(modifier, ModifierSpec), own, owner=f"modifier {modifier!r}")


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
