"""Reports over several runs: what each method reached as a table, and how as a picture. Torch-free."""

from __future__ import annotations

from timm_robust.report.summary import Comparison, Run

__all__ = ["Comparison", "Run"]
