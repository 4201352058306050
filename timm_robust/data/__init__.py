"""Data: names -> splits -> batches on the device. `load_data` first, then a loader for each use."""

from timm_robust.data.batch import Batch, View
from timm_robust.data.bundle import DataBundle, Extra, Split, load_data
from timm_robust.data.extra import add_extra
from timm_robust.data.loaders import (
    EvalLoader,
    TrainLoader,
    as_tensors,
    make_eval_loader,
    make_train_loader,
    sample,
    some,
)
from timm_robust.data.noise import with_label_noise

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
