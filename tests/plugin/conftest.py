"""Fake installed packages: a module and a dist-info folder on sys.path."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from timm_robust.plugin import hookimpl
from timm_robust.plugin import manager as manager_module
from timm_robust.plugin.environment import DISABLE, LOAD, STRICT
from timm_robust.plugin.manager import PluginManager

HEADER = """
from timm_robust.plugin import DefenseSpec, ModelsSpec, Options, RecipeSpec, Reference, hookimpl, option

def spec(name="foo", **changes):
    code = f"{__name__}_code"
    values = dict(summary="does foo", reference=Reference(title="Foo"), api_version=1)
    return DefenseSpec(**{"name": name, "target": f"{code}:Foo", "config": f"{code}:FooOptions", **values, **changes})

def recipe(name="foo-quick", **changes):
    values = dict(summary="two epochs", source="our choice", api_version=1, values={"epochs": 2})
    return RecipeSpec(**{"name": name, **values, **changes})
"""

GOOD = """
@hookimpl
def timm_robust_defenses():
    yield spec()
"""

Install = Callable[..., Path]


def plugin_of(*specs: Any, hook: str = "timm_robust_defenses") -> SimpleNamespace:
    """A plugin object that yields the given specs."""

    def function() -> Any:
        yield from specs

    return SimpleNamespace(**{hook: hookimpl(function)})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(code)` fakes `timm-robust-foo 0.2` with entry point foo; nothing else is installed for discovery."""
    site = tmp_path / "site"
    site.mkdir()
    for name in (DISABLE, LOAD, STRICT):
        monkeypatch.delenv(name, raising=False)

    def write(
        code: str = GOOD,
        *,
        distribution: str = "timm-robust-foo",
        version: str = "0.2",
        entry: str = "foo",
        header: str = HEADER,
    ) -> Path:
        module = "fake_" + distribution.replace("-", "_") + "_" + entry.replace("-", "_")
        (site / f"{module}.py").write_text(header + code)
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        entries = info / "entry_points.txt"
        old = entries.read_text() if entries.exists() else "[timm_robust]\n"
        entries.write_text(old + f"{entry} = {module}\n")
        return site / f"{module}.py"

    def fake_entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        found = importlib.metadata.distributions(path=[str(site)])
        return [entry for distribution in found for entry in distribution.entry_points if entry.group == group]

    monkeypatch.setattr(manager_module, "entry_points", fake_entry_points)
    monkeypatch.syspath_prepend(str(site))
    yield write
    for name in [name for name in sys.modules if name.startswith("fake_timm_robust")]:
        del sys.modules[name]


@pytest.fixture
def manager() -> PluginManager:
    """A manager that knows the hooks and no plugin."""
    return PluginManager()
