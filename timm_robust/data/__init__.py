"""Data: names -> splits -> batches on the device. `load_data` first, then a loader for each use."""

from timm_robust.data.batch import Batch, View
from timm_robust.data.bundle import DataBundle, Split, load_data
from timm_robust.data.loaders import EvalLoader, TrainLoader, as_tensors, make_eval_loader, make_train_loader, sample

__all__ = [
    "Batch",
    "DataBundle",
    "EvalLoader",
    "Split",
    "TrainLoader",
    "View",
    "as_tensors",
    "load_data",
    "make_eval_loader",
    "make_train_loader",
    "sample",
]
