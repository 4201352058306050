"""Rows of a comparison: collapses, robust overfitting, and images in common."""

from __future__ import annotations

from rich.console import Console

from tests.support import epoch_rows, finished_run
from timm_robust.report import Comparison
from timm_robust.report.curves import first_collapse
from timm_robust.runs.finished import FinishedRun
from timm_robust.runs.history import ROBUST_OVERFITTING


def test_collapse_and_images_in_common(tmp_path):
    runs = [
        finished_run("fgsm", 0, [0.3, 0.4, 0.0], collapse=3, robust_correct=(1, 1, 1)),
        finished_run("fgsm", 1, [0.3, 0.4, 0.0], collapse=2),
        finished_run("fgsm", 2, [0.3, 0.4, 0.4]),
        finished_run("sat", 0, [0.3, 0.4, 0.0], collapse=2, answer="stop"),
    ]
    result = Comparison(tmp_path, runs)
    fgsm, sat = result.rows()
    assert fgsm["happened"] == "collapsed in epochs 2-3 (2 of 3 seeds)"
    assert sat["happened"] == "collapsed in epoch 2, stopped"
    # AutoAttack took three images of one run and two of the others: all are counted on the first two
    assert fgsm["attacks"]["autoattack"]["values"] == [1.0, 0.5, 0.5] and result.images() == {"autoattack": 2}
    assert "autoattack on the first 2" in repr(result)
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        result.show(console)  # a narrow terminal has what happened below the table
    assert "fgsm: collapsed in epochs 2-3" in captured.get() and "±\n" not in captured.get()
    assert sat["clean"]["sd"] is None and "nothing" not in repr(
        Comparison(tmp_path, [FinishedRun("fgsm", 0, tmp_path)])
    )


def test_robust_overfitting_is_no_collapse(tmp_path):
    rows = epoch_rows(0.5, 0.4, 0.4)
    rows[-1]["events"] = [{"kind": ROBUST_OVERFITTING, "epoch": 3, "answer": "stop", "best": 0.5, "robust": 0.4}]
    run = FinishedRun("pgd", 0, tmp_path, done=True, history=[{**row, "seconds": 1.0} for row in rows])
    run.manifest = {"method_args": {}}
    assert first_collapse(rows) is None and run.events == [] and len(run.fallen) == 1
    assert Comparison(tmp_path, [run]).rows()[0]["happened"] == "robust overfitting, stopped after epoch 3"
