"""The callbacks of a run: the monitors of every run, the plugins' observers, trackers, and the user's own."""

from __future__ import annotations

from accelerate import Accelerator

from timm_robust.training.config import TrainConfig
from timm_robust.training.monitors.base import CallbackContext
from timm_robust.training.monitors.catastrophic_overfitting import CatastrophicOverfittingMonitor
from timm_robust.training.monitors.group import Monitors
from timm_robust.training.monitors.nan import NaNMonitor
from timm_robust.training.monitors.progress import ProgressMonitor
from timm_robust.training.monitors.robust_overfitting import RobustOverfittingMonitor
from timm_robust.training.monitors.trackers import TrackerMonitor


def make_monitors(config: TrainConfig, context: CallbackContext, accelerator: Accelerator) -> Monitors:
    """All callbacks of a run, in the order in which they are told."""
    own: dict[str, object] = {
        "nan": NaNMonitor(),
        "catastrophic overfitting": CatastrophicOverfittingMonitor(context.run.recipe),
        "robust overfitting": RobustOverfittingMonitor(context.run.recipe),
        "progress": ProgressMonitor(),
    }
    if config.observers is not None:
        own["observers"] = config.observers
    if config.trackers:
        own["trackers"] = TrackerMonitor(accelerator, str(config.threat))
    return Monitors(context, own, config.callbacks)
