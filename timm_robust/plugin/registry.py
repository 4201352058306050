"""Registered specs with their origin, and plugins with their status."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from timm_robust.plugin.environment import DISABLE, HOST
from timm_robust.plugin.errors import PluginConflict, PluginFailure, provider
from timm_robust.plugin.spec import (
    SUPPORTED_API,
    DefenseSpec,
    DistillerSpec,
    ModelsSpec,
    ModifierSpec,
    RecipeSpec,
    Spec,
)

SPECS: dict[str, type[Spec]] = {
    "timm_robust_defenses": DefenseSpec,
    "timm_robust_modifiers": ModifierSpec,
    "timm_robust_distillers": DistillerSpec,
    "timm_robust_models": ModelsSpec,
    "timm_robust_recipes": RecipeSpec,
}
"""Hooks that yield specs, and the kind of each; all other hooks are callbacks."""

AnySpec = TypeVar("AnySpec", bound=Spec)


@dataclass(frozen=True)
class RegisteredSpec(Generic[AnySpec]):
    """A spec with the plugin, distribution and version that it comes from."""

    spec: AnySpec
    plugin: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """Origin in messages: `timm-robust-foo 0.2`."""
        return provider(self.plugin, self.distribution, self.version)

    def provider(self) -> dict[str, str]:
        """Origin in manifests."""
        return {"name": self.plugin, "distribution": self.distribution, "version": self.version}

    def owner(self) -> Plugin:
        """The plugin, by identity only."""
        return Plugin(self.plugin, self.distribution, self.version)

    def row(self) -> dict[str, Any]:
        """Row of `methods --json`."""
        spec = self.spec
        return {
            "name": spec.name,
            "kind": spec.kind,
            "summary": spec.summary,
            "reference": str(spec.reference or ""),
            "distribution": self.distribution,
            "version": self.version,
            "status": "active" if supported(spec) else "incompatible",
            "error": "" if supported(spec) else api_gap(spec),
        }


@dataclass
class Plugin:
    """A plugin that was discovered or registered, with its status.

    Attributes:
        name: name of the entry point.
        distribution, version: empty if it was registered by hand.
        status: "active", "blocked" or "failed".
        error: why it is not active, as a clause ("failed at import: ...").
        hooks: names of the hooks that it implements.
        specs: specs that it yielded; None before it was asked.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: str = "active"
    error: str = ""
    hooks: tuple[str, ...] = ()
    specs: list[Spec] | None = None

    @property
    def origin(self) -> str:
        """Origin in messages: `timm-robust-foo 0.2`."""
        return provider(self.name, self.distribution, self.version)

    def failure(self, stage: str, error: BaseException) -> PluginFailure:
        """Failure for an exception that the plugin raised."""
        return PluginFailure.of(self.name, self.distribution, self.version, stage, error)

    def row(self) -> dict[str, Any]:
        """Row of `plugins --json`."""
        specs = self.specs or []
        status, error = self.status, self.error
        if status == "active" and specs and not any(map(supported, specs)):
            status, error = "incompatible", api_gap(specs[0])
        kinds = {spec.kind for spec in specs} | ({"observer"} if set(self.hooks) - set(SPECS) else set())
        return {
            "name": self.name,
            "kind": ", ".join(sorted(kinds)) or "unknown",
            "summary": "; ".join(spec.summary for spec in specs),
            "reference": "; ".join(str(spec.reference) for spec in specs if spec.reference),
            "distribution": self.distribution,
            "version": self.version,
            "status": status,
            "error": error,
            "api_version": max((spec.api_version for spec in specs), default=None),
            "hooks": list(self.hooks),
            # a method and its recipe often share a name
            "offers": list(dict.fromkeys(name for spec in specs for name in spec.offers)),
        }


def supported(spec: Spec) -> bool:
    """Whether this host serves the plugin API that the spec was written for."""
    return spec.api_version in SUPPORTED_API


def api_gap(spec: Spec) -> str:
    """Why the host does not serve the spec, as a clause."""
    known = ", ".join(map(str, sorted(SUPPORTED_API)))
    return f"needs plugin API {spec.api_version}, but this timm-robust has {known}"


def by_name(
    specs: Iterable[RegisteredSpec[AnySpec]],
    noun: str,
    names: Callable[[AnySpec], tuple[str, ...]] = lambda spec: (spec.name,),
) -> dict[str, RegisteredSpec[AnySpec]]:
    """Supported specs by the names that they offer.

    Args:
        specs: specs of one kind.
        noun: kind of name, for the message.
        names: names that a spec offers; default: its own.

    Raises:
        PluginConflict: one name is offered twice.
    """
    table: dict[str, RegisteredSpec[AnySpec]] = {}
    for found in specs:
        for name in names(found.spec) if supported(found.spec) else ():
            if name in table:
                raise conflict(f"the {noun} {name!r} is offered by", table[name].owner(), found.owner())
            table[name] = found
    return table


def conflict(what: str, first: Plugin, second: Plugin) -> PluginConflict:
    """Error for a name that two plugins claim, with the way out."""
    # advise to block the third party rather than this package; a plugin registered by hand cannot be blocked
    other = min(second, first, key=lambda plugin: (not plugin.distribution, plugin.distribution == HOST))
    name = other.distribution if first.name == second.name else other.name
    return PluginConflict(f"{what} both {first.origin} and {second.origin}: block one with {DISABLE}={name}")
