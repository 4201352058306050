"""Options of standard training: none."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options


@dataclass(frozen=True, kw_only=True)
class StandardOptions(Options):
    """No options."""
