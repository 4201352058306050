"""Configuration of one training run, resolved: what `api.train` hands to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from timm_robust.data import DataBundle
from timm_robust.defense import Defense
from timm_robust.errors import UserError
from timm_robust.models.pixel_model import PixelModel
from timm_robust.modifier import Modifier
from timm_robust.plugin.callbacks import PluginCallback
from timm_robust.recipes.recipe import Recipe
from timm_robust.threat import Threat
from timm_robust.training.monitors.group import require_callback
from timm_robust.utils.progress import Display


@dataclass
class TrainConfig:
    """Configuration of one training run.

    Attributes:
        metadata: entries of the checkpoints' model.json beside the model.
        modifiers: modifiers by name, in the order in which they wrap the update.
        teachers: trained networks by the option that names them.
        trackers: names of accelerate's trackers.
        observers: the plugins' observers, as one callback.
        callbacks: the user's callbacks: see `timm_robust.Callback`.
    """

    model: PixelModel
    defense: Defense
    data: DataBundle
    recipe: Recipe
    threat: Threat
    output: Path
    metadata: dict[str, Any]
    modifiers: dict[str, Modifier] = field(default_factory=dict)
    teachers: dict[str, nn.Module] = field(default_factory=dict)
    seed: int = 0
    precision: str = "fp32"
    device: str | None = None
    channels_last: bool = True
    compile: bool = False
    workers: int | None = None
    resume: bool = False
    trackers: list[str] = field(default_factory=list)
    display: Display = field(default_factory=Display)
    observers: PluginCallback | None = None
    callbacks: list[object] = field(default_factory=list)

    def require_fit(self) -> None:
        """Refuses what cannot be trained, before a teacher is.

        Raises:
            UserError: a norm that the method does not know, torch.compile with a method that differentiates twice or
                reads features, or a callback that is none.
        """
        name, defense = self.metadata.get("method") or type(self.defense).__name__, self.defense
        if self.threat.norm not in defense.norms:
            raise UserError(f"method {name!r} knows the norm {' or '.join(defense.norms)} only, not {self.threat.norm}")
        if self.compile and defense.differentiates_twice:
            raise UserError(f"method {name!r} differentiates twice, which torch.compile cannot: leave --compile out")
        if self.compile and defense.reads_features:
            raise UserError(f"method {name!r} reads inner features, which torch.compile hides: leave --compile out")
        for callback in self.callbacks:
            require_callback(callback)
