"""Finds plugins, keeps broken ones apart, and answers who offers what.

pluggy checks the hooks of one plugin; this file adds what it leaves out: a stranger that fails is recorded and skipped,
blocked plugins are never imported, names clash loudly, and every record knows the distribution that it came from.
What this package ships, and what a user registers by hand, must work: their failures are raised.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from timm_robust.errors import PluginError, UserError, nearest, unknown
from timm_robust.plugin.callbacks import Callbacks
from timm_robust.plugin.errors import PluginConflict, PluginFailure
from timm_robust.plugin.hookspecs import PROJECT, Hooks
from timm_robust.plugin.registry import RECORDS, AnyCode, AnySpec, Plugin, RegisteredSpec, api_gap, supported
from timm_robust.plugin.spec import CodeSpec, DefenseSpec, DistillerSpec, ModelsSpec, ModifierSpec, Spec, validate

if TYPE_CHECKING:
    from timm_robust.options import Options

HOST = "timm-robust"
"""Distribution whose plugins may not fail."""

DISABLE = "TIMM_ROBUST_DISABLE_PLUGINS"
"""Environment: names of entry points or distributions never to import, with commas between."""

LOAD = "TIMM_ROBUST_LOAD_PLUGINS"
"""Environment: the only ones to import; set to nothing, none is."""

STRICT = "TIMM_ROBUST_STRICT"
"""Environment: 1 raises every failure instead of recording it."""

log = logging.getLogger(__name__)


class PluginManager:
    """Plugins by name, and what they offer.

    Attributes:
        strict: raise every failure instead of recording it.
        failures: what went wrong so far.
    """

    def __init__(self) -> None:
        self.strict = os.environ.get(STRICT, "") not in ("", "0")
        self.failures: list[PluginFailure] = []
        self._plugins: list[Plugin] = []
        self._files: dict[Path, str] = {}
        self._tried_models: set[str] = set()
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(Hooks)

    # getting plugins in

    def discover(self) -> None:
        """Imports and registers every installed plugin that is not blocked.

        Raises:
            PluginConflict: two distributions use one entry-point name.
            PluginError: a plugin of this package fails, or any does in strict mode.
        """
        wanted: dict[str, tuple[Plugin, EntryPoint]] = {}
        for entry in sorted(entry_points(group=PROJECT), key=lambda entry: entry.name):
            plugin = Plugin(entry.name, *_identity(entry))
            plugin.error = _why_blocked(plugin)
            if plugin.error:
                plugin.status = "blocked"
                self._plugins.append(plugin)
            elif plugin.name in wanted:
                # pluggy's own loader keeps whichever it meets first, and says nothing
                raise _conflict(f"the plugin name {plugin.name!r} is used by", wanted[plugin.name][0], plugin)
            else:
                wanted[plugin.name] = (plugin, entry)
        for plugin, entry in wanted.values():
            self._plugins.append(plugin)
            try:
                module = entry.load()
            except (Exception, SystemExit) as error:
                self._fail(plugin, "import", error)
            else:
                self._add(module, plugin)

    def register(self, plugin: Any, *, name: str, distribution: str = "", version: str = "") -> None:
        """Registers a plugin: a module, or an object with hooks as attributes.

        Args:
            plugin: holds functions under `hookimpl`.
            name: unique among active plugins.
            distribution, version: as if it were installed; a failure is then recorded instead of raised.

        Raises:
            PluginConflict: the name is taken.
            PluginError: its hooks break the rules.
        """
        newcomer = Plugin(name, distribution, version)
        for known in self._active():
            if known.name == name:
                raise _conflict(f"the plugin name {name!r} is used by", known, newcomer)
        self._plugins.append(newcomer)
        self._add(plugin, newcomer)

    def unregister(self, name: str) -> None:
        """Forgets the plugin `name` and what it offers."""
        if self._pluggy.has_plugin(name):
            self._pluggy.unregister(name=name)
        self._plugins = [plugin for plugin in self._plugins if plugin.name != name]

    @contextmanager
    def using(self, plugin: Any, *, name: str) -> Iterator[None]:
        """Registers a plugin for the length of a `with` block, for tests."""
        self.register(plugin, name=name)
        try:
            yield
        finally:
            self.unregister(name)

    def load_file(self, path: str | Path) -> str:
        """Registers a plugin that is a single Python file, once.

        Inside the file, `__name__` is the module's name, for `target=f"{__name__}:Foo"`.

        Returns:
            the plugin's name: the file's, without the ending.

        Raises:
            UserError: there is no such file.
            PluginError: it fails, or breaks the rules.
        """
        path = Path(path).resolve()
        if path in self._files:
            return self._files[path]
        module_name = "timm_robust_file_" + re.sub(r"\W", "_", path.stem)
        module_spec = importlib.util.spec_from_file_location(module_name, path) if path.is_file() else None
        if module_spec is None or module_spec.loader is None:
            raise UserError(f"plugin file '{path}' is not there or no Python file: expected a file that ends in .py")
        module = importlib.util.module_from_spec(module_spec)
        # before it runs, because dataclasses and targets look their own module up
        sys.modules[module_name] = module
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise PluginError(str(Plugin(path.stem).failure("import", error))) from error
        self.register(module, name=path.stem)
        self._collect()
        self._files[path] = path.stem
        return path.stem

    def _add(self, module: Any, plugin: Plugin) -> None:
        try:
            self._pluggy.register(module, name=plugin.name)
            plugin.hooks = _checked_hooks(self._pluggy, module)
        except Exception as error:
            self._fail(plugin, "register", error)

    # what they offer

    def defenses(self) -> dict[str, RegisteredSpec[DefenseSpec]]:
        """Methods by name.

        Raises:
            PluginConflict: two plugins offer one name.
        """
        return self._by_name(DefenseSpec, "method", lambda spec: (spec.name,))

    def model_specs(self) -> dict[str, RegisteredSpec[ModelsSpec]]:
        """Families of networks by name.

        Raises:
            PluginConflict: two plugins offer one family or one network.
        """
        self._by_name(ModelsSpec, "model", lambda spec: spec.models)
        return self._by_name(ModelsSpec, "model family", lambda spec: (spec.name,))

    def modifiers(self) -> dict[str, RegisteredSpec[ModifierSpec]]:
        """What composes with any method, by name.

        Raises:
            PluginConflict: two plugins offer one name.
        """
        return self._by_name(ModifierSpec, "modifier", lambda spec: (spec.name,))

    def distillers(self) -> dict[str, RegisteredSpec[DistillerSpec]]:
        """What makes small data sets of large ones, by name.

        Raises:
            PluginConflict: two plugins offer one name.
        """
        return self._by_name(DistillerSpec, "distiller", lambda spec: (spec.name,))

    def defense(self, name: str) -> RegisteredSpec[DefenseSpec]:
        """The method `name`.

        Raises:
            UserError: no such method; says so if its plugin failed, is blocked, or is written for another host.
        """
        return self._named(DefenseSpec, name)

    def modifier(self, name: str) -> RegisteredSpec[ModifierSpec]:
        """The modifier `name`.

        Raises:
            UserError: no such modifier, as `defense` says it.
        """
        return self._named(ModifierSpec, name)

    def distiller(self, name: str) -> RegisteredSpec[DistillerSpec]:
        """The distiller `name`.

        Raises:
            UserError: no such distiller, as `defense` says it.
        """
        return self._named(DistillerSpec, name)

    def load_config(self, name: str, kind: type[CodeSpec] = DefenseSpec) -> type[Options]:
        """Options class of the method (or modifier, or distiller) `name`; does not import torch.

        Raises:
            UserError: no such method, or its plugin fails to load.
        """
        found: Any = self._named(kind, name)  # type: ignore[type-var]
        with self._loading(found):
            return found.spec.load_config()

    def load_target(self, name: str, kind: type[CodeSpec] = DefenseSpec) -> type[Any]:
        """Class of the method (or modifier, or distiller) `name`; imports torch.

        Raises:
            UserError: no such method, or its plugin fails to load.
        """
        found: Any = self._named(kind, name)  # type: ignore[type-var]
        with self._loading(found):
            return found.spec.load_target()

    def register_models(self) -> None:
        """Makes timm know the networks of all plugins; imports torch. Each family is tried once."""
        for name, found in self.model_specs().items():
            if name in self._tried_models:
                continue
            self._tried_models.add(name)
            try:
                found.spec.load()
            except (Exception, SystemExit) as error:
                self._fail(self._plugin(found.plugin), "load", error)

    def observers(self) -> Callbacks:
        """Whom to tell about one run."""
        return Callbacks(self)

    def implementations(self, hook: str) -> list[tuple[Plugin, Any]]:
        """Active plugins that implement `hook`, by name, each with pluggy's record of the function."""
        found = getattr(self._pluggy.hook, hook).get_hookimpls()
        return [(self._plugin(one.plugin_name), one) for one in sorted(found, key=lambda one: one.plugin_name)]

    # tables

    def method_rows(self) -> list[dict[str, Any]]:
        """Rows of `timm-robust methods`: every method, and every plugin whose methods cannot be known.

        Raises:
            PluginConflict: two plugins offer one name.
        """
        self.defenses()
        rows = [found.row() for found in self._provided(DefenseSpec)]
        for plugin in self._plugins:
            if plugin.status != "active":
                row = plugin.row()
                rows.append({key: row[key] for key in row if key not in ("api_version", "hooks", "offers")})
        return sorted(rows, key=lambda row: row["name"])

    def report(self) -> list[dict[str, Any]]:
        """Rows of `timm-robust plugins`: every plugin that was met."""
        self._collect()
        return [plugin.row() for plugin in sorted(self._plugins, key=lambda plugin: plugin.name)]

    # inside

    def _active(self) -> list[Plugin]:
        plugins = [plugin for plugin in self._plugins if plugin.status == "active"]
        return sorted(plugins, key=lambda plugin: plugin.name)

    def _plugin(self, name: str) -> Plugin:
        return next(plugin for plugin in self._active() if plugin.name == name)

    def _collect(self) -> None:
        """Asks each plugin for its records, once; one that fails half-way contributes nothing at all."""
        for plugin in self._active():
            if plugin.records is None:
                try:
                    plugin.records = self._ask(plugin)
                except (Exception, SystemExit) as error:
                    self._fail(plugin, "collect", error)

    def _ask(self, plugin: Plugin) -> list[Spec]:
        records: list[Spec] = []
        for hook, expected in RECORDS.items():
            functions = [one.function for owner, one in self.implementations(hook) if owner is plugin]
            for function in functions:
                answer = function()
                if not hasattr(answer, "__iter__"):
                    raise PluginError(f"{hook}() gave {_a(answer)}: expected an iterable of {expected.__name__}")
                for record in answer:  # a generator raises here, long after the call
                    if not isinstance(record, expected):
                        raise PluginError(f"{hook}() gave {_a(record)}: expected {expected.__name__}")
                    validate(record)
                    if any(record.kind == other.kind and record.name == other.name for other in records):
                        raise PluginError(f"{hook}() gave {record.name!r} twice: expected different names")
                    records.append(record)
        return records

    def _provided(self, kind: type[AnySpec]) -> list[RegisteredSpec[AnySpec]]:
        """Every record of one kind, supported or not."""
        self._collect()
        return [
            RegisteredSpec(record, plugin.name, plugin.distribution, plugin.version)
            for plugin in self._active()
            for record in plugin.records or ()
            if isinstance(record, kind)
        ]

    def _by_name(
        self, kind: type[AnySpec], noun: str, names: Callable[[AnySpec], tuple[str, ...]]
    ) -> dict[str, RegisteredSpec[AnySpec]]:
        """Supported records of one kind by name; two of one name are a conflict."""
        table: dict[str, RegisteredSpec[AnySpec]] = {}
        for found in self._provided(kind):
            for name in names(found.spec) if supported(found.spec) else ():
                if name in table:
                    owners = self._plugin(table[name].plugin), self._plugin(found.plugin)
                    raise _conflict(f"the {noun} {name!r} is offered by", *owners)
                table[name] = found
        return table

    def _named(self, kind: type[AnyCode], name: str) -> RegisteredSpec[AnyCode]:
        """The record of one kind that offers `name`, or why there is none."""
        offered = self._by_name(kind, kind.noun, lambda spec: (spec.name,))
        if name in offered:
            return offered[name]
        for found in self._provided(kind):
            if found.spec.name == name:
                raise UserError(f"{kind.noun} {name!r} comes from {found.origin}, which {api_gap(found.spec)}")
        for plugin in self._plugins:
            if plugin.status != "active" and _normal(name) in _names(plugin):
                raise UserError(f"{kind.noun} {name!r} comes from {plugin.origin}, which {plugin.error}")
        broken = ", ".join(plugin.name for plugin in self._plugins if plugin.status == "failed")
        raise unknown(kind.noun, name, offered, hint=f"plugins that failed: {broken}" if broken else "")

    @contextmanager
    def _loading(self, found: RegisteredSpec[AnyCode]) -> Iterator[None]:
        """Turns a failure to load what the user asked for into a sentence that names the culprit."""
        try:
            yield
        except UserError:
            raise  # says already what to do, such as which extra to install
        except (Exception, SystemExit) as error:
            plugin = self._plugin(found.plugin)
            failure = plugin.failure("load", error)
            self.failures.append(failure)
            if self._must_work(plugin):
                raise PluginError(str(failure)) from error
            raise UserError(
                f"{found.spec.noun} {found.spec.name!r} comes from {plugin.origin}, which failed at load: "
                f"{failure.error} ({STRICT}=1 shows where)"
            ) from error

    def _must_work(self, plugin: Plugin) -> bool:
        return self.strict or plugin.distribution in ("", HOST)

    def _fail(self, plugin: Plugin, stage: str, error: BaseException) -> None:
        """Takes a plugin out, records why and warns once; raises instead where a failure may not be passed over."""
        if self._pluggy.has_plugin(plugin.name):  # half of it, with pluggy before 1.7
            self._pluggy.unregister(name=plugin.name)
        failure = plugin.failure(stage, error)
        plugin.status, plugin.error = "failed", f"failed at {stage}: {failure.error}"
        self.failures.append(failure)
        if self._must_work(plugin):
            raise PluginError(str(failure)) from error
        log.warning("%s; it is skipped (%s=%s silences this)", failure, DISABLE, plugin.name)


@functools.cache
def get_manager() -> PluginManager:
    """The process's manager, with all installed plugins; built on first use."""
    manager = PluginManager()
    manager.discover()
    return manager


def _identity(entry: EntryPoint) -> tuple[str, str]:
    """Distribution and version of an entry point; a failed uninstall leaves folders that know neither."""
    metadata: Any = entry.dist.metadata if entry.dist else {}
    return metadata.get("Name") or "unknown distribution", metadata.get("Version") or ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _names(plugin: Plugin) -> set[str]:
    """What users may call a plugin: its own name, its distribution's, and that without our prefix."""
    distribution = _normal(plugin.distribution)
    return {_normal(plugin.name), distribution, distribution.removeprefix(f"{HOST}-")} - {""}


def _why_blocked(plugin: Plugin) -> str:
    """Why the environment blocks a plugin, or nothing."""
    own = {_normal(plugin.name), _normal(plugin.distribution)}
    if own & {_normal(name) for name in os.environ.get(DISABLE, "").split(",")}:
        return f"is blocked by {DISABLE}"
    allowed = os.environ.get(LOAD)
    if allowed is not None and not own & {_normal(name) for name in allowed.split(",")}:
        return f"is not named in {LOAD}"
    return ""


def _checked_hooks(manager: pluggy.PluginManager, module: Any) -> tuple[str, ...]:
    """Names of the hooks of a registered plugin.

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


def _conflict(what: str, first: Plugin, second: Plugin) -> PluginConflict:
    # advise to block the stranger rather than what this package ships; what was registered by hand cannot be blocked
    other = min(second, first, key=lambda plugin: (not plugin.distribution, plugin.distribution == HOST))
    name = other.distribution if first.name == second.name else other.name
    return PluginConflict(f"{what} both {first.origin} and {second.origin}: block one with {DISABLE}={name}")


def _a(value: Any) -> str:
    """`a dict`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
