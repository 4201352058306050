"""Options of methods and settings of recipes, declared once as dataclass fields, so that nothing is written twice.

A field holds help, unit, bounds and source; parsing, validation, tables and manifests derive from it. Torch-free.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

from timm_robust.errors import PluginError, UserError, nearest, unknown

TYPES = ("int", "float", "bool", "str")
"""Types of options, each also as `X | None`: those that a command line and a JSON file can express."""

BN_POLICIES = ("eval", "train", "frozen")
"""BatchNorm policies during attacks; see `bn_option`."""

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def option(
    default: Any,
    *,
    help: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
    source: str = "",
) -> Any:
    """Declares one option, as a field of a dataclass.

    Args:
        default: value that is used unless the user gives one.
        help: one phrase that says what the option does.
        unit: unit of the value ("epochs", "pixels"); empty for plain numbers.
        low, high: bounds, inclusive.
        choices: allowed values.
        source: origin of the default ("paper, section 5", "released code").
    """
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": choices, "source": source}
    return dataclasses.field(default=default, metadata=metadata)


def steps_option(default: int = 10, *, source: str, help: str = "attack steps per batch") -> Any:
    """Declares the option `steps`, the number of attack steps; the default `perturb` reads it."""
    return option(default, help=help, low=1, source=source)


def step_option(default: float = 0.25, *, source: str, help: str = "step size; 0.25 is 2/255 at eps 8/255") -> Any:
    """Declares the option `step_ratio`, the attack's step size in units of eps; the default `perturb` reads it."""
    return option(default, help=help, unit="eps", low=0.0, source=source)


ONE_STEP = "size of the single attack step"
"""Help of `step_option` for methods whose attack has one step."""


def start_option(default: bool = True, *, source: str, help: str = "start at a uniform point of the ball") -> Any:
    """Declares the option `random_start`; the default `perturb` reads it."""
    return option(default, help=help, source=source)


def bn_option(default: str, *, source: str = "") -> Any:
    """Declares the option `attack_bn`, which published methods differ in; the default `perturb` reads it."""
    text = (
        "BatchNorm during attacks: eval uses running statistics, train batch statistics and updates the running ones, "
        "frozen batch statistics only"
    )
    return option(default, help=text, choices=BN_POLICIES, source=source)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the options of methods.

    Example:
        @dataclass(frozen=True, kw_only=True)
        class PgdOptions(Options):
            steps: int = steps_option(source="paper, section 5")
            weight: float = option(6.0, help="weight of the divergence", low=0.0, source="released code")
    """


@dataclass(frozen=True, kw_only=True)
class PGDSettings:
    """Settings of the default attack, PGD; a method's options of the same names replace them.

    Attributes:
        steps: number of steps.
        step_ratio: step size in units of eps: 2/255 at 8/255.
        random_start: start at a uniform point of the ball, or at the image.
        attack_bn: BatchNorm policy, one of `BN_POLICIES`.
    """

    steps: int = 10
    step_ratio: float = 0.25
    random_start: bool = True
    attack_bn: str = "eval"

    @classmethod
    def from_options(cls, options: Options) -> PGDSettings:
        """The settings that `options` declares; the defaults for the others."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in vars(options).items() if name in names})


AnyOptions = TypeVar("AnyOptions")


@dataclass(frozen=True)
class OptionInfo:
    """Row of an option table; `range` is text such as "at least 1" or "eval, train, frozen"."""

    name: str
    type: str
    default: Any
    unit: str
    range: str
    help: str
    source: str


def parse_options(cls: type[AnyOptions], given: Mapping[str, Any], *, owner: str) -> AnyOptions:
    """An instance of the options class `cls` from the user's values; strings and typed values mean the same.

    Args:
        cls: dataclass of options.
        given: values by option name.
        owner: owner of the options, for messages ("method 'pgd'").

    Raises:
        UserError: an unknown name (the message suggests the nearest valid one) or a bad value.
    """
    known = {field.name: field for field in _fields(cls)}
    for name in given:
        if not known:
            raise UserError(f"unknown option {name!r}: {owner} has no options")
        if name not in known:
            raise unknown("option", name, known, hint=f"options of {owner}")
    return cls(**{name: check_value(known[name], value, of=owner) for name, value in given.items()})


def check_value(field: dataclasses.Field[Any], value: Any, *, owner: str = "option", of: str = "") -> Any:
    """The value converted to the field's type and checked against its bounds.

    Args:
        field: field declared with `option`.
        value: text from the user, or a Python value.
        owner: noun for the field in messages ("option", "recipe setting").
        of: owner of the field in messages ("method 'pgd'"); left out if empty.

    Raises:
        UserError: wrong type, out of bounds, or not among the choices.
    """
    name = f"{owner} {field.name!r}" + (f" of {of}" if of else "")
    kind, optional = _type_of(field)
    if optional and (value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null", ""))):
        return None
    try:
        parsed = _PARSERS[kind](value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"{name} is {value!r}: expected {_NOUNS[kind]}{' or none' if optional else ''}") from None
    choices = field.metadata.get("choices")
    if choices is not None and parsed not in choices:
        close = nearest(str(parsed), map(str, choices), n=1)
        listed = ", ".join(map(str, choices))
        hint = f"did you mean {close[0]}? (expected one of {listed})" if close else f"expected one of {listed}"
        raise UserError(f"{name} is {parsed!r}: {hint}")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if (low is not None and parsed < low) or (high is not None and parsed > high):
        raise UserError(f"{name} is {parsed!r}: expected {_range(field)}")
    return parsed


def describe(cls: type[Any]) -> list[OptionInfo]:
    """The options of a dataclass in declaration order, for tables, cards and manifests."""
    infos = []
    for field in _fields(cls):
        kind, optional = _type_of(field)
        about = field.metadata
        infos.append(
            OptionInfo(
                name=field.name,
                type=f"{kind} | None" if optional else kind,
                default=field.default,
                unit=about.get("unit", ""),
                range=_range(field),
                help=about.get("help", ""),
                source=about.get("source", ""),
            )
        )
    return infos


def to_dict(options: Any) -> dict[str, Any]:
    """Options as plain values, for manifests; the inverse of `parse_options`."""
    return dataclasses.asdict(options)


def check_options_class(cls: Any, *, owner: str) -> None:
    """Rejects an options class that the host could not document or parse.

    Raises:
        PluginError: not a frozen keyword-only dataclass derived from `Options`, or a field that has no default or no
            help, whose type is not one of `TYPES`, or whose default is outside its own bounds.
    """
    name = getattr(cls, "__name__", repr(cls))
    if not (isinstance(cls, type) and issubclass(cls, Options) and "__dataclass_fields__" in vars(cls)):
        raise PluginError(f"{name} of {owner} is not an options class: expected a dataclass derived from Options")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginError(f"options class {name} of {owner} can be changed: expected @dataclass(frozen=True)")
    for field in _fields(cls):
        if not field.kw_only or field.default is dataclasses.MISSING or not field.metadata.get("help"):
            raise PluginError(
                f"option {field.name!r} of {owner} is not complete: "
                "expected @dataclass(kw_only=True) and option(default, help=...)"
            )
        try:
            check_value(field, field.default, owner="default of option", of=owner)
        except UserError as error:
            raise PluginError(str(error)) from None


def _fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _type_of(field: dataclasses.Field[Any]) -> tuple[str, bool]:
    """Name of the field's type, and whether None is allowed.

    Annotations are text where a module postpones them, as ours do, and real types elsewhere.
    """
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    if not isinstance(field.type, str) and text not in TYPES:
        text = str(field.type)  # `int | None` has no name of its own
    wrapped = re.fullmatch(r"(?:typing\.)?Optional\[(.+)\]", text.strip())
    parts = [part.strip() for part in (wrapped.group(1) + " | None" if wrapped else text).split("|")]
    names = [part for part in parts if part != "None"]
    if len(names) != 1 or names[0] not in TYPES:
        raise PluginError(f"option {field.name!r} has type {text!r}: expected one of {', '.join(TYPES)}, or X | None")
    return names[0], "None" in parts


def _range(field: dataclasses.Field[Any]) -> str:
    choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
    if choices is not None:
        return ", ".join(map(str, choices))
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return f"at most {high:g}" if high is not None else ""


def _parse_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise TypeError
    top, slash, bottom = value.partition("/") if isinstance(value, str) else (value, "", "")
    number = float(top) / float(bottom) if slash else float(top)
    if not math.isfinite(number):
        raise ValueError
    return number


def _parse_int(value: Any) -> int:
    number = _parse_float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _parse_bool(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in WORDS:
        raise ValueError
    return WORDS[word]


def _parse_str(value: Any) -> str:
    # YAML and shells turn `0.5` into a number; anything else that is not text is a mistake
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise TypeError
    return str(value).strip()


_PARSERS = {"int": _parse_int, "float": _parse_float, "bool": _parse_bool, "str": _parse_str}
_NOUNS = {"int": "an integer", "float": "a number or a fraction like 8/255", "bool": "true or false", "str": "text"}
