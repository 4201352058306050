"""AutoAttack's fast mode: see `run.py`."""

from timm_robust.evaluation.fast.entry import FastMode, fast_entry
from timm_robust.evaluation.fast.run import FastResult, require_fast, run_fast

__all__ = ["FastMode", "FastResult", "fast_entry", "require_fast", "run_fast"]
