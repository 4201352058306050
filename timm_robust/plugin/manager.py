"""Plugin manager: discovery, isolation of broken plugins, lookup by name.

pluggy checks the hooks of one plugin; this file adds what it leaves out: a third-party plugin that fails is recorded
and skipped, blocked plugins are never imported, name conflicts are errors, and every spec knows its distribution.
Failures of this package's own plugins, and of plugins registered by hand, are raised.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from timm_robust.errors import PluginError, UserError, unknown
from timm_robust.plugin.callbacks import PluginCallback
from timm_robust.plugin.environment import DISABLE, HOST, STRICT, aliases, normal, strict, why_blocked
from timm_robust.plugin.errors import PluginFailure
from timm_robust.plugin.hook_checks import checked_hooks, checked_specs
from timm_robust.plugin.hookspecs import PROJECT, Hooks
from timm_robust.plugin.registry import SPECS, AnySpec, Plugin, RegisteredSpec, api_gap, by_name, conflict
from timm_robust.plugin.spec import (
    CodeSpec,
    DefenseSpec,
    DistillerSpec,
    ModelsSpec,
    ModifierSpec,
    RecipeSpec,
)

if TYPE_CHECKING:
    from timm_robust.options import Options

log = logging.getLogger(__name__)


class PluginManager:
    """Plugins, and the specs that they offer.

    Attributes:
        strict: whether every failure is raised instead of recorded.
        failures: failures so far.
    """

    def __init__(self) -> None:
        self.strict = strict()
        self.failures: list[PluginFailure] = []
        self._plugins: list[Plugin] = []
        self._files: dict[Path, str] = {}
        self._tried_models: set[str] = set()
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(Hooks)

    # discovery and registration

    def discover(self) -> None:
        """Imports and registers every installed plugin that is not blocked.

        Raises:
            PluginConflict: two distributions use one entry-point name.
            PluginError: a plugin of this package fails, or any does in strict mode.
        """
        wanted: dict[str, tuple[Plugin, EntryPoint]] = {}
        for entry in sorted(entry_points(group=PROJECT), key=lambda entry: entry.name):
            plugin = Plugin(entry.name, *_identity(entry))
            plugin.error = why_blocked(plugin.name, plugin.distribution)
            if plugin.error:
                plugin.status = "blocked"
                self._plugins.append(plugin)
            elif plugin.name in wanted:
                # pluggy's own loader silently keeps the first
                raise conflict(f"the plugin name {plugin.name!r} is used by", wanted[plugin.name][0], plugin)
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
            plugin: module or object that holds functions under `hookimpl`.
            name: name, unique among active plugins.
            distribution, version: package to treat it as installed from; failures are then recorded, not raised.

        Raises:
            PluginConflict: the name is taken.
            PluginError: its hooks break the rules.
        """
        newcomer = Plugin(name, distribution, version)
        for known in self._active():
            if known.name == name:
                raise conflict(f"the plugin name {name!r} is used by", known, newcomer)
        self._plugins.append(newcomer)
        self._add(plugin, newcomer)

    def unregister(self, name: str) -> None:
        """Removes the plugin `name` and its specs."""
        if self._pluggy.has_plugin(name):
            self._pluggy.unregister(name=name)
        self._plugins = [plugin for plugin in self._plugins if plugin.name != name]

    @contextmanager
    def using(self, plugin: Any, *, name: str) -> Iterator[None]:
        """Registers a plugin for the duration of a `with` block, for tests."""
        self.register(plugin, name=name)
        try:
            yield
        finally:
            self.unregister(name)

    def load_file(self, path: str | Path) -> str:
        """Registers a plugin that is a single Python file, once.

        Inside the file, `__name__` is the module's name, for `target=f"{__name__}:Foo"`.

        Returns:
            name of the plugin: the file's, without the suffix.

        Raises:
            UserError: no such file.
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
            plugin.hooks = checked_hooks(self._pluggy, module)
        except Exception as error:
            self._fail(plugin, "register", error)

    # specs by name

    def defenses(self) -> dict[str, RegisteredSpec[DefenseSpec]]:
        """Methods by name.

        Raises:
            PluginConflict: two plugins offer one name.
        """
        return by_name(self._provided(DefenseSpec), "method")

    def model_specs(self) -> dict[str, RegisteredSpec[ModelsSpec]]:
        """Families of networks by name.

        Raises:
            PluginConflict: two plugins offer one family or one network.
        """
        specs = self._provided(ModelsSpec)
        by_name(specs, "model", lambda spec: spec.models)
        return by_name(specs, "model family")

    def modifiers(self) -> dict[str, RegisteredSpec[ModifierSpec]]:
        """Modifiers by name; raises as `defenses` does."""
        return by_name(self._provided(ModifierSpec), "modifier")

    def distillers(self) -> dict[str, RegisteredSpec[DistillerSpec]]:
        """Distillers by name; raises as `defenses` does."""
        return by_name(self._provided(DistillerSpec), "distiller")

    def recipes(self, own: Iterable[RegisteredSpec[RecipeSpec]] = ()) -> dict[str, RegisteredSpec[RecipeSpec]]:
        """Recipes by name; their values are not checked here, see `timm_robust.recipes.check`.

        Args:
            own: recipes of the host, which come first and which no plugin may redefine.

        Raises:
            PluginConflict: one name is offered twice.
        """
        return by_name((*own, *self._provided(RecipeSpec)), "recipe")

    def defense(self, name: str) -> RegisteredSpec[DefenseSpec]:
        """The method `name`.

        Raises:
            UserError: no such method; says so if its plugin failed, is blocked, or needs another plugin API.
        """
        return self._named(DefenseSpec, name)

    def modifier(self, name: str) -> RegisteredSpec[ModifierSpec]:
        """The modifier `name`; raises as `defense` does."""
        return self._named(ModifierSpec, name)

    def distiller(self, name: str) -> RegisteredSpec[DistillerSpec]:
        """The distiller `name`; raises as `defense` does."""
        return self._named(DistillerSpec, name)

    def recipe(self, name: str, own: Iterable[RegisteredSpec[RecipeSpec]] = ()) -> RegisteredSpec[RecipeSpec]:
        """The recipe `name`, of the host or of a plugin; `own` as in `recipes`, raises as `defense` does."""
        return self._named(RecipeSpec, name, own)

    def load_config(self, name: str, kind: type[CodeSpec] = DefenseSpec) -> type[Options]:
        """Options class of a method, modifier or distiller; does not import torch.

        Raises:
            UserError: no such method, or its plugin fails to load.
        """
        found: Any = self._named(kind, name)
        with self.blaming(found, "load"):
            return found.spec.load_config()

    def load_target(self, name: str, kind: type[CodeSpec] = DefenseSpec) -> type[Any]:
        """Class of a method, modifier or distiller; imports torch.

        Raises:
            UserError: no such method, or its plugin fails to load.
        """
        found: Any = self._named(kind, name)
        with self.blaming(found, "load"):
            return found.spec.load_target()

    def register_models(self) -> None:
        """Registers the networks of all plugins with timm; imports torch. Each family is tried once."""
        for name, found in self.model_specs().items():
            if name in self._tried_models:
                continue
            self._tried_models.add(name)
            try:
                found.spec.load()
            except (Exception, SystemExit) as error:
                self._fail(self._plugin(found.plugin), "load", error)

    def observers(self) -> PluginCallback:
        """The plugins' observers, as a callback of one run."""
        return PluginCallback(self.implementations, strict=self.strict)

    def implementations(self, hook: str) -> list[tuple[Plugin, Any]]:
        """Active plugins that implement `hook`, sorted by name, each with pluggy's implementation object."""
        found = getattr(self._pluggy.hook, hook).get_hookimpls()
        return [(self._plugin(one.plugin_name), one) for one in sorted(found, key=lambda one: one.plugin_name)]

    # listings

    def method_rows(self) -> list[dict[str, Any]]:
        """Rows of `timm-robust methods`: every method, and every plugin whose methods are unknown.

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
        """Rows of `timm-robust plugins`: every plugin, active or not."""
        self._collect()
        return [plugin.row() for plugin in sorted(self._plugins, key=lambda plugin: plugin.name)]

    # internals

    def _active(self) -> list[Plugin]:
        plugins = [plugin for plugin in self._plugins if plugin.status == "active"]
        return sorted(plugins, key=lambda plugin: plugin.name)

    def _plugin(self, name: str) -> Plugin:
        return next(plugin for plugin in self._active() if plugin.name == name)

    def _collect(self) -> None:
        """Asks each plugin for its specs, once; a plugin that fails half-way contributes nothing."""
        for plugin in self._active():
            if plugin.specs is None:
                try:
                    plugin.specs = checked_specs(
                        (hook, one.function)
                        for hook in SPECS
                        for owner, one in self.implementations(hook)
                        if owner is plugin
                    )
                except (Exception, SystemExit) as error:
                    self._fail(plugin, "collect", error)

    def _provided(self, kind: type[AnySpec]) -> list[RegisteredSpec[AnySpec]]:
        """Every spec of one kind, supported or not."""
        self._collect()
        return [
            RegisteredSpec(spec, plugin.name, plugin.distribution, plugin.version)
            for plugin in self._active()
            for spec in plugin.specs or ()
            if isinstance(spec, kind)
        ]

    def _named(
        self, kind: type[AnySpec], name: str, own: Iterable[RegisteredSpec[AnySpec]] = ()
    ) -> RegisteredSpec[AnySpec]:
        """The spec of one kind that offers `name`; the error says why there is none."""
        offered = by_name((*own, *self._provided(kind)), kind.noun)
        if name in offered:
            return offered[name]
        for found in self._provided(kind):
            if found.spec.name == name:
                raise UserError(f"{kind.noun} {name!r} comes from {found.origin}, which {api_gap(found.spec)}")
        for plugin in self._plugins:
            if plugin.status != "active" and normal(name) in aliases(plugin.name, plugin.distribution):
                raise UserError(f"{kind.noun} {name!r} comes from {plugin.origin}, which {plugin.error}")
        raise unknown(kind.noun, name, offered, hint="; ".join([f"see timm-robust {kind.noun}s", *self._absent()]))

    def _absent(self) -> list[str]:
        """Hints at plugins whose specs are unknown."""
        hints = []
        for status, clause in (("failed", "plugins that failed"), ("blocked", "blocked plugins")):
            names = [plugin.name for plugin in self._plugins if plugin.status == status]
            if names:
                hints.append(f"{clause}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
        return hints

    @contextmanager
    def blaming(self, found: RegisteredSpec[AnySpec], stage: str) -> Iterator[None]:
        """Turns a failure of what the user asked for into a sentence that names the spec and its distribution."""
        try:
            yield
        except UserError:
            raise  # already says what to do, such as which extra to install
        except (Exception, SystemExit) as error:
            plugin = found.owner()
            failure = plugin.failure(stage, error)
            self.failures.append(failure)
            if self._must_work(plugin):
                raise PluginError(str(failure)) from error
            raise UserError(
                f"{found.spec.noun} {found.spec.name!r} comes from {plugin.origin}, which failed at {stage}: "
                f"{failure.error} ({STRICT}=1 shows where)"
            ) from error

    def _must_work(self, plugin: Plugin) -> bool:
        return self.strict or plugin.distribution in ("", HOST)

    def _fail(self, plugin: Plugin, stage: str, error: BaseException) -> None:
        """Removes a plugin, records why and warns once; raises instead if the plugin must work."""
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
    """Plugin manager of the process, with all installed plugins; built on first use."""
    manager = PluginManager()
    manager.discover()
    return manager


def _identity(entry: EntryPoint) -> tuple[str, str]:
    """Distribution and version of an entry point; a failed uninstall leaves metadata without either."""
    metadata: Any = entry.dist.metadata if entry.dist else {}
    return metadata.get("Name") or "unknown distribution", metadata.get("Version") or ""
