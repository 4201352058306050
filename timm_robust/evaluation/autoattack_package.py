"""The installed AutoAttack package: which one, and its version."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util

from timm_robust.errors import UserError

PACKAGES = ("autoattack", "pyautoattack")
"""Import names: the authors' repository, and the release."""


def implementation() -> str:
    """Import name of the installed implementation: the authors' package where it is there, else the released one.

    Raises:
        UserError: neither is installed.
    """
    for name in PACKAGES:
        with contextlib.suppress(ValueError):  # RobustBench's stand-in, while that is imported
            spec = importlib.util.find_spec(name)
            # a package, not just some folder or a script of that name
            if spec is not None and spec.origin is not None and spec.submodule_search_locations:
                return name
    raise UserError("AutoAttack is not installed: pip install pyautoattack")


def implementation_version(package: str | None = None) -> str:
    """Package and version, such as "pyautoattack 0.2.0"."""
    package = package or implementation()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return f"{package} (version unknown)"
