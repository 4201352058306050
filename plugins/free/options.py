"""Options of free adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, option, step_option


@dataclass(frozen=True, kw_only=True)
class FreeOptions(Options):
    """Defaults are the authors' for CIFAR-10; divide the epochs by `replays` for the same cost."""

    replays: int = option(8, help="updates on each batch before the next; 4 on ImageNet", low=1, source="released code")
    step_ratio: float = step_option(1.0, help="size of the perturbation's step at each replay", source="released code")
