"""Reports on one or several runs, as tables, pictures and pages. Torch-free."""

from __future__ import annotations

from timm_robust.report.summary import Comparison
from timm_robust.runs.finished import FinishedRun

__all__ = ["Comparison", "FinishedRun"]
