"""What users type, as values: several after one option, `name=value`, names with commas between. Torch-free."""

from __future__ import annotations

import ast
from typing import Any, Optional

from timm_robust.errors import UserError

SPREAD = (
    "--model-kwargs",
    "--set",
    "--option",
    "-o",
    "--attack",
    "--test-attack",
    "--from",
    "--eps-values",
    "--only",
    "--track",
    "--methods",
    "--seeds",
    "--modifier",
)
"""Options that take several values in a row, as timm's do: `--model-kwargs layers=[1,1,1,1] drop_rate=0.1`."""

Pairs = Optional[list[str]]


def spread(arguments: list[str]) -> list[str]:
    """Repeats an option of `SPREAD` before each of the values that follow it, which is what the parser understands."""
    out: list[str] = []
    option = None
    for argument in arguments:
        if argument in SPREAD:
            option, first = argument, True
            continue
        if option is None or argument.startswith("-"):
            if option is not None and first:
                out.append(option)  # no value followed: let the parser complain
            option = None
            out.append(argument)
        else:
            out += [option, argument]
            first = False
    return out + ([option] if option is not None and first else [])


def pairs(given: Pairs, option: str) -> dict[str, Any]:
    """`["a=1", "b=[2,3]", "c=x"]` as {"a": 1, "b": [2, 3], "c": "x"}: Python literals where they parse, else text.

    Raises:
        UserError: an item without `=`.
    """
    out: dict[str, Any] = {}
    for item in given or []:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise UserError(f"{option} {item!r} is no assignment: expected name=value")
        try:
            out[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[name] = text
    return out


def by_method(given: Pairs) -> dict[str, dict[str, Any]]:
    """`["moat.stages=r2"]` as {"moat": {"stages": "r2"}}.

    Raises:
        UserError: an item without method, name or `=`.
    """
    out: dict[str, dict[str, Any]] = {}
    for full, value in pairs(given, "--option").items():
        method, _, name = full.partition(".")
        if not method or not name:
            raise UserError(f"--option {full!r} names no method: expected METHOD.name=value such as moat.stages=r2")
        out.setdefault(method, {})[name] = value
    return out


def dotted(item: str) -> bool:
    """Whether an option names whose it is: `awp.gamma=0.01`."""
    return "." in item.partition("=")[0]


def modifiers_of(names: list[str] | None, options: list[str]) -> dict[str, dict[str, Any]]:
    """`["awp"]` and `["awp.gamma=0.01"]` as {"awp": {"gamma": 0.01}}.

    Raises:
        UserError: an option of a modifier that the run does not have.
    """
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names or []}
    for name, values in by_method(options).items():
        if name not in chosen:
            raise UserError(f"--option {name}.{next(iter(values))} belongs to {name!r}: add --modifier {name}")
        chosen[name] = values
    return chosen


def words(given: Pairs) -> list[str] | None:
    """`["a,b", "c"]` as ["a", "b", "c"]."""
    return given and [word.strip() for item in given for word in item.split(",") if word.strip()]


def whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise UserError(f"seed {word!r} is no whole number: expected seeds such as 0,1,2") from None
