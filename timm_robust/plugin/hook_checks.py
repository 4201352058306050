"""Checks of hook implementations, where pluggy has no rule or its versions differ, and of the specs that they yield."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pluggy

from timm_robust.errors import PluginError, nearest
from timm_robust.plugin.hookspecs import PROJECT, Hooks
from timm_robust.plugin.registry import SPECS
from timm_robust.plugin.spec import Spec, validate


def checked_hooks(manager: pluggy.PluginManager, module: Any) -> tuple[str, ...]:
    """Names of the hooks that a registered plugin implements.

    Raises:
        PluginError: no hook, an unknown one, or one with a signature that pluggy's versions treat differently.
    """
    known = sorted(name for name in vars(Hooks) if name.startswith(PROJECT))
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        implementation = next(one for one in caller.get_hookimpls() if one.plugin is module)
        if not caller.has_spec():
            if implementation.optionalhook:  # of a newer host, and its author knows
                continue
            close = nearest(caller.name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
            raise PluginError(f"unknown hook {caller.name!r}: {hint}")
        if implementation.hookwrapper or implementation.wrapper:
            raise PluginError(f"hook {caller.name!r} is a wrapper: expected a plain function")
        for parameter in inspect.signature(implementation.function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise PluginError(f"hook {caller.name!r} takes {parameter}: expected arguments by name")
            if parameter.default is not parameter.empty:
                raise PluginError(f"hook {caller.name!r} has a default for {parameter.name!r}: expected none")
    hooks = tuple(sorted(caller.name for caller in callers if caller.has_spec()))
    if not hooks:
        raise PluginError(f"no hook found: expected a function under @hookimpl with a name like {known[0]}")
    return hooks


def checked_specs(functions: Iterable[tuple[str, Callable[[], Any]]]) -> list[Spec]:
    """Specs that one plugin yields.

    Args:
        functions: its implementations of the hooks in `SPECS`, each after the name of its hook.

    Raises:
        PluginError: not an iterable of valid specs of the right kind with different names.
    """
    specs: list[Spec] = []
    for hook, function in functions:
        expected, answer = SPECS[hook], function()
        if not hasattr(answer, "__iter__"):
            raise PluginError(f"{hook}() gave {_a(answer)}: expected an iterable of {expected.__name__}")
        for spec in answer:  # a generator raises here, long after the call
            if not isinstance(spec, expected):
                raise PluginError(f"{hook}() gave {_a(spec)}: expected {expected.__name__}")
            validate(spec)
            if any(spec.kind == other.kind and spec.name == other.name for other in specs):
                raise PluginError(f"{hook}() gave {spec.name!r} twice: expected different names")
            specs.append(spec)
    return specs


def _a(value: Any) -> str:
    """`a dict`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
