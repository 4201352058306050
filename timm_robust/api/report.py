"""A page about finished runs. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def make_report(runs: str | Path | Sequence[str | Path], output: str | Path = "report.html") -> Path:
    """Writes one self-contained page about finished or unfinished runs.

    Args:
        runs: folders as `train` makes them, at least one.
        output: file of the page; an existing one is replaced.

    Returns:
        path of the page.

    Raises:
        UserError: a folder holds no run, or the page cannot be written.
    """
    from timm_robust.report.page import write_page

    return write_page(runs, Path(output))
