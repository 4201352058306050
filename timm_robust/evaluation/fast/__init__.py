"""AutoAttack's fast mode: see `run.py`."""

from timm_robust.evaluation.fast.entry import fast_entry
from timm_robust.evaluation.fast.run import FastResult, require_fast, run_fast

__all__ = ["FastResult", "fast_entry", "require_fast", "run_fast"]
