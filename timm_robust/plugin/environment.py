"""Environment variables that block plugins or make their failures loud."""

from __future__ import annotations

import os
import re

HOST = "timm-robust"
"""Distribution whose plugins must work."""

DISABLE = "TIMM_ROBUST_DISABLE_PLUGINS"
"""Environment variable: comma-separated entry points or distributions that are never imported."""

LOAD = "TIMM_ROBUST_LOAD_PLUGINS"
"""Environment variable: comma-separated entry points or distributions that alone are imported; empty: none."""

STRICT = "TIMM_ROBUST_STRICT"
"""Environment variable: 1 raises every failure instead of recording it."""


def strict() -> bool:
    """Whether every failure is raised."""
    return os.environ.get(STRICT, "") not in ("", "0")


def why_blocked(plugin: str, distribution: str) -> str:
    """Why the environment blocks a plugin, as a clause; empty if it does not."""
    own = {normal(plugin), normal(distribution)}
    if own & {normal(name) for name in os.environ.get(DISABLE, "").split(",")}:
        return f"is blocked by {DISABLE}"
    allowed = os.environ.get(LOAD)
    if allowed is not None and not own & {normal(name) for name in allowed.split(",")}:
        return f"is not named in {LOAD}"
    return ""


def aliases(plugin: str, distribution: str) -> set[str]:
    """Names that users may call a plugin: its own, its distribution's, and that without our prefix."""
    package = normal(distribution)
    return {normal(plugin), package, package.removeprefix(f"{HOST}-")} - {""}


def normal(name: str) -> str:
    """Name of a package or plugin as comparisons need it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
