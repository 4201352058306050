"""The package list, the entry points and the generated pages agree with what is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
else:  # 3.10 has no reader for TOML
    pytest.skip("needs Python 3.11", allow_module_level=True)

FOLDERS = sorted(path.parent for path in (ROOT / "plugins").glob("*/__init__.py"))


def test_every_package_is_listed():
    here = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "timm_robust").rglob("__init__.py")}
    here |= {"timm_robust_plugins", *(f"timm_robust_plugins.{folder.name}" for folder in FOLDERS)}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == here


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_plugin_has_a_card_and_an_entry_point(folder):
    assert (folder / "README.md").is_file()
    targets = PROJECT["project"]["entry-points"]["timm_robust"].values()
    if folder.name != "smooth":  # a card and a census: the swap itself is the host's
        assert f"timm_robust_plugins.{folder.name}.plugin" in targets
        assert (folder / "plugin.py").is_file()


def test_generated_parts_are_current():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/results/tables.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_other_top_level_entry():
    allowed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    allowed |= {"timm_robust", "plugins", "examples", "tests"}
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {Path(line).parts[0] for line in tracked.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_cards_are_installed():
    from importlib.resources import files

    assert "TRADES" in files("timm_robust_plugins.trades").joinpath("README.md").read_text()
