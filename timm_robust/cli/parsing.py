"""Parsing of values as users type them: lists, assignments, integers. Torch-free."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Optional

from timm_robust.errors import UserError

Strings = Optional[list[str]]
"""Values of an option that takes several: `--seeds 0,1`, `--seeds 0 1` and `--seeds 0 --seeds 1` mean the same."""

STDOUT = "-"
"""The file that stands for standard output."""

_CLOSED = r"(?![^(\[{]*[)\]}])"
_BETWEEN_WORDS = re.compile(r",(?!\s*[\w.]+=)" + _CLOSED)
_BETWEEN_PAIRS = re.compile(r",(?=\s*[\w.-]+=)" + _CLOSED)


def expand_lists(arguments: Sequence[str], several: Collection[str], optional: Collection[str] = ()) -> list[str]:
    """Rewrites arguments for the parser, which wants an option again before each of its values.

    Args:
        arguments: as typed.
        several: options that take several values: `--set a=1 b=2` becomes `--set a=1 --set b=2`.
        optional: options that take a file or nothing: `--json` becomes `--json -`.
    """
    out: list[str] = []
    option, alone = "", False
    for argument, following in zip(arguments, (*arguments, "--")[1:], strict=True):
        if argument in several:
            if alone:
                out.append(option)  # without a value, for the parser to complain
            option, alone = argument, True
        elif option and not argument.startswith("-"):
            out += [option, argument]
            alone = False
        else:
            out += [option, argument] if alone else [argument]
            option, alone = "", False
            if argument in optional and following.startswith("-") and following != STDOUT:
                out.append(STDOUT)
    return [*out, option] if alone else out


def split_commas(given: Strings) -> list[str] | None:
    """`["a,b", "c"]` as ["a", "b", "c"]; commas in brackets, or before NAME=, belong to a value."""
    return given and [word.strip() for item in given for word in _BETWEEN_WORDS.split(item) if word.strip()]


def parse_pairs(given: Strings, option: str) -> dict[str, Any]:
    """`["a=1,b=[2,3]", "c=x"]` as {"a": 1, "b": [2, 3], "c": "x"}: Python literals where they parse, else text.

    Raises:
        UserError: an item without `=`.
    """
    out: dict[str, Any] = {}
    for item in (pair.strip() for several in given or [] for pair in _BETWEEN_PAIRS.split(several)):
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise UserError(f"{option} {item!r} is no assignment: expected name=value")
        try:
            out[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[name] = text
    return out


def by_owner(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"moat.stages": "r2"}` as {"moat": {"stages": "r2"}}.

    Raises:
        UserError: a name without owner.
    """
    out: dict[str, dict[str, Any]] = {}
    for full, value in options.items():
        owner, _, name = full.partition(".")
        if not owner or not name:
            raise UserError(f"--option {full!r} names no method: expected METHOD.name=value such as moat.stages=r2")
        out.setdefault(owner, {})[name] = value
    return out


def parse_int(word: str, what: str) -> int:
    """An integer; `what` it is, for the message ("seed").

    Raises:
        UserError: it is none.
    """
    try:
        return int(word)
    except ValueError:
        raise UserError(f"{what} {word!r} is no whole number") from None


def is_stdout(file: Path | None) -> bool:
    """Whether `--json` came without a file: only JSON is printed then."""
    return file is not None and str(file) == STDOUT


def parse_json_file(file: Path | None) -> Path | None:
    """Refuses, in commands with an optional name, `--json NAME`: the name was not meant as a file.

    Raises:
        UserError: it has neither an ending nor a folder.
    """
    if file and not is_stdout(file) and not file.suffix and len(file.parts) == 1:
        raise UserError(f"--json {file} names no file: expected one such as {file}.json, or the name before --json")
    return file
