"""What a plugin author imports; see `hookspecs.py` for the hooks and `spec.py` for the specs that they yield."""

from __future__ import annotations

from timm_robust.options import ONE_STEP, Options, bn_option, option, start_option, step_option, steps_option
from timm_robust.plugin.hookspecs import hookimpl
from timm_robust.plugin.manager import get_manager
from timm_robust.plugin.spec import (
    API_VERSION,
    DefenseSpec,
    DistillerSpec,
    ModelsSpec,
    ModifierSpec,
    RecipeSpec,
    Reference,
)

__all__ = [
    "API_VERSION",
    "ONE_STEP",
    "DefenseSpec",
    "DistillerSpec",
    "ModelsSpec",
    "ModifierSpec",
    "Options",
    "RecipeSpec",
    "Reference",
    "bn_option",
    "get_manager",
    "hookimpl",
    "option",
    "start_option",
    "step_option",
    "steps_option",
]
