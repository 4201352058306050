"""Options of the random-images baseline: none."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options


@dataclass(frozen=True, kw_only=True)
class RandomImagesOptions(Options):
    """No options."""
