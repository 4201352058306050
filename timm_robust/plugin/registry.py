"""What discovery met: records with their origin, and plugins with their state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from timm_robust.plugin.errors import PluginFailure, provider
from timm_robust.plugin.spec import SUPPORTED_API, DefenseSpec, DistillerSpec, ModelsSpec, ModifierSpec, Spec

RECORDS: dict[str, type[Spec]] = {
    "timm_robust_defenses": DefenseSpec,
    "timm_robust_modifiers": ModifierSpec,
    "timm_robust_distillers": DistillerSpec,
    "timm_robust_models": ModelsSpec,
}
"""Hooks that yield records, and of which kind; all others observe."""

AnySpec = TypeVar("AnySpec", DefenseSpec, ModifierSpec, DistillerSpec, ModelsSpec)
AnyCode = TypeVar("AnyCode", DefenseSpec, ModifierSpec, DistillerSpec)


@dataclass(frozen=True)
class RegisteredSpec(Generic[AnySpec]):
    """A record, and the plugin, distribution and version that it came from."""

    spec: AnySpec
    plugin: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """`timm-robust-foo 0.2`."""
        return provider(self.plugin, self.distribution, self.version)

    def provider(self) -> dict[str, str]:
        """As manifests have it."""
        return {"name": self.plugin, "distribution": self.distribution, "version": self.version}

    def row(self) -> dict[str, Any]:
        """As `methods --json` has it."""
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
    """One plugin that was met, whatever became of it.

    Attributes:
        name: of the entry point.
        distribution, version: empty if it was registered by hand.
        status: "active", "blocked" or "failed".
        error: why it is not active, as a clause ("failed at import: ...").
        hooks: names of the hooks that it implements.
        records: what it yielded; None until it was asked.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: str = "active"
    error: str = ""
    hooks: tuple[str, ...] = ()
    records: list[Spec] | None = None

    @property
    def origin(self) -> str:
        """`timm-robust-foo 0.2`."""
        return provider(self.name, self.distribution, self.version)

    def failure(self, stage: str, error: BaseException) -> PluginFailure:
        """The record of an exception that it raised."""
        return PluginFailure.of(self.name, self.distribution, self.version, stage, error)

    def row(self) -> dict[str, Any]:
        """As `plugins --json` has it."""
        records = self.records or []
        status, error = self.status, self.error
        if status == "active" and records and not any(map(supported, records)):
            status, error = "incompatible", api_gap(records[0])
        kinds = {record.kind for record in records} | ({"observer"} if set(self.hooks) - set(RECORDS) else set())
        return {
            "name": self.name,
            "kind": ", ".join(sorted(kinds)) or "unknown",
            "summary": "; ".join(record.summary for record in records),
            "reference": "; ".join(str(record.reference) for record in records if record.reference),
            "distribution": self.distribution,
            "version": self.version,
            "status": status,
            "error": error,
            "api_version": max((record.api_version for record in records), default=None),
            "hooks": list(self.hooks),
            "offers": [name for record in records for name in record.offers],
        }


def supported(spec: Spec) -> bool:
    """Whether this host serves the contract that the record was written for."""
    return spec.api_version in SUPPORTED_API


def api_gap(spec: Spec) -> str:
    """Why it does not, as a clause."""
    known = ", ".join(map(str, sorted(SUPPORTED_API)))
    return f"needs plugin API {spec.api_version}, but this timm-robust has {known}"
