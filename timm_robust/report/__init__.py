"""Reports over several runs: what each method reached as a table, and how as a picture. Torch-free."""

from __future__ import annotations

from timm_robust.report.summary import Comparison
from timm_robust.runs.finished import FinishedRun

__all__ = ["Comparison", "FinishedRun"]
