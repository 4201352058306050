"""How far a run fell from its best epoch, in one line."""

from __future__ import annotations

from tests.support import epoch_rows
from timm_robust.runs.history import best_and_last, overfitting_line


def test_a_run_says_how_far_it_fell(overfitted):
    _, result = overfitted
    both, rows = best_and_last(result.history), result.history
    best = max(row["epoch"] for row in rows if row["best"])
    assert list(both) == ["validation", "training", "test"]
    assert both["validation"] == (rows[best - 1]["val_robust"], rows[-1]["val_robust"])
    assert both["test"] == tuple(rows[i]["diagnosis"]["test_robust"] for i in (best - 1, -1))
    line = overfitting_line(rows)
    assert line in repr(result) and "\n" not in line
    high, low = both["validation"]
    assert line.startswith(
        f"robust accuracy on validation images: best {high:.1%} (epoch {best}), last {low:.1%} (epoch {len(rows)}), "
        f"gap {100 * (high - low):.1f} points; training images: best "
    )
    assert overfitting_line(epoch_rows(0.312, 0.279)) == (
        "robust accuracy on validation images: best 31.2% (epoch 1), last 27.9% (epoch 2), gap 3.3 points"
    )
    assert overfitting_line([]) == "" and "gap 0.0 points" in overfitting_line(epoch_rows(0.3))
