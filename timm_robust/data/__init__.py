"""Data sets: names -> splits -> batches on the device. `load_data` first, then a loader for each use.

Names are imported when first asked for, so that torch-free modules (recipes, submissions) can use what here is
torch-free: `augmentations` and `class_order`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm_robust.data.batch import Batch as Batch
    from timm_robust.data.batch import View as View
    from timm_robust.data.bundle import DataBundle as DataBundle
    from timm_robust.data.bundle import Extra as Extra
    from timm_robust.data.bundle import Split as Split
    from timm_robust.data.bundle import load_data as load_data
    from timm_robust.data.extra import add_extra as add_extra
    from timm_robust.data.loaders import EvalLoader as EvalLoader
    from timm_robust.data.loaders import TrainLoader as TrainLoader
    from timm_robust.data.loaders import as_tensors as as_tensors
    from timm_robust.data.loaders import make_eval_loader as make_eval_loader
    from timm_robust.data.loaders import make_train_loader as make_train_loader
    from timm_robust.data.loaders import sample as sample
    from timm_robust.data.loaders import some as some
    from timm_robust.data.noise import with_label_noise as with_label_noise

_HOMES = {
    "Batch": "batch",
    "DataBundle": "bundle",
    "EvalLoader": "loaders",
    "Extra": "bundle",
    "Split": "bundle",
    "TrainLoader": "loaders",
    "View": "batch",
    "add_extra": "extra",
    "as_tensors": "loaders",
    "load_data": "bundle",
    "make_eval_loader": "loaders",
    "make_train_loader": "loaders",
    "sample": "loaders",
    "some": "loaders",
    "with_label_noise": "noise",
}

__all__ = [
    "Batch",
    "DataBundle",
    "EvalLoader",
    "Extra",
    "Split",
    "TrainLoader",
    "View",
    "add_extra",
    "as_tensors",
    "load_data",
    "make_eval_loader",
    "make_train_loader",
    "sample",
    "some",
    "with_label_noise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'timm_robust.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"timm_robust.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
