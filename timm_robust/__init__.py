"""Adversarial training for any timm image classifier.

    import timm_robust
    timm_robust.train(model="resnet50", method="sat")

Importing this package loads neither torch nor timm; what needs them is imported when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm_robust.api.compare import compare as compare
    from timm_robust.api.distill import DistillResult as DistillResult
    from timm_robust.api.distill import distill as distill
    from timm_robust.api.evaluate import evaluate as evaluate
    from timm_robust.api.report import make_report as make_report
    from timm_robust.api.train import list_methods as list_methods
    from timm_robust.api.train import register_models as register_models
    from timm_robust.api.train import train as train
    from timm_robust.errors import RunFailed as RunFailed
    from timm_robust.errors import UserError as UserError
    from timm_robust.runs.checkpoint import load as load
    from timm_robust.runs.history import TrainResult as TrainResult
    from timm_robust.training.monitors.base import Callback as Callback
    from timm_robust.training.monitors.base import Rollback as Rollback
    from timm_robust.training.monitors.base import StopTraining as StopTraining

__version__ = "0.1.0"

_HOMES = {
    "Callback": "timm_robust.training.monitors.base",
    "DistillResult": "timm_robust.api.distill",
    "Rollback": "timm_robust.training.monitors.base",
    "StopTraining": "timm_robust.training.monitors.base",
    "TrainResult": "timm_robust.runs.history",
    "RunFailed": "timm_robust.errors",
    "UserError": "timm_robust.errors",
    "compare": "timm_robust.api.compare",
    "distill": "timm_robust.api.distill",
    "evaluate": "timm_robust.api.evaluate",
    "list_methods": "timm_robust.api.train",
    "load": "timm_robust.runs.checkpoint",
    "make_report": "timm_robust.api.report",
    "register_models": "timm_robust.api.train",
    "train": "timm_robust.api.train",
}

__all__ = [
    "Callback",
    "DistillResult",
    "Rollback",
    "RunFailed",
    "StopTraining",
    "TrainResult",
    "UserError",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "list_methods",
    "load",
    "make_report",
    "register_models",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'timm_robust' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
