"""Comparisons of real small runs: the table has their numbers, nothing finished is lost or repeated."""

from __future__ import annotations

import json
import statistics

import pytest
from timm_robust_plugins.n_fgsm.n_fgsm import NFGSMTraining

import timm_robust
from tests.support import SMALL
from timm_robust import UserError


@pytest.fixture
def compare_small(tmp_path, few_digits):
    """`timm_robust.compare` on the small things: two epochs, FGSM on 20 test images."""

    def run(methods, output="comparison", **settings):
        defaults = {
            "model": "resnet18",
            "model_kwargs": SMALL,
            "data": few_digits,
            "seeds": [0],
            "epochs": 2,
            "batch_size": 50,
            "recipe": "digits",
            "test_attacks": ["clean", "fgsm"],
            "test_examples": 20,
            "quiet": True,
            "recipe_args": {"check_attack": "pgd-2-1"},
        }
        given = {name: value for name, value in {**defaults, **settings}.items() if value is not None}
        return timm_robust.compare(methods, output=tmp_path / output, **given)

    return run


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_table_holds_the_numbers_of_the_runs(compare_small, tmp_path, few_digits):
    result = compare_small(["fgsm", "trades"], seeds=[0, 3], method_args={"trades": {"steps": 1, "beta": 3}})
    out = tmp_path / "comparison"
    row = result.rows()[1]
    runs = [out / "trades-seed0", out / "trades-seed3"]
    measured = [json.loads((run / "evaluation.json").read_text()) for run in runs]
    robust = [record["attacks"]["fgsm"]["robust_accuracy"] for record in measured]
    assert row["method"] == "trades" and row["seeds"] == [0, 3] and row["method_args"]["beta"] == 3.0
    assert row["clean"]["values"] == pytest.approx([record["clean_accuracy"] for record in measured])
    assert row["attacks"]["fgsm"]["mean"] == pytest.approx(statistics.fmean(robust))
    assert row["attacks"]["fgsm"]["sd"] == pytest.approx(statistics.stdev(robust))
    assert row["last"]["values"] == [metrics(run)[-1]["val_robust"] for run in runs]
    assert result.rows()[0]["passes"] == 2.0  # fgsm: one for the attack, one for the update
    cost = [epoch["seconds"] for run in runs for epoch in metrics(run)]
    assert row["seconds_per_epoch"] == statistics.median(cost) and not result.failed

    text, page = repr(result), (out / "comparison.md").read_text()
    cell = f"{100 * row['clean']['mean']:.1f} ±{100 * row['clean']['sd']:.1f}"
    for told in ("trades", cell, "mean ±standard deviation over 2 seeds", "20 test images", "Linf 8/255", "2 epochs"):
        assert told in text and told in page
    record = json.loads((out / "comparison.json").read_text())
    assert record["methods"] == json.loads(json.dumps(result.rows()))
    assert [run["status"] for run in record["runs"]] == ["done"] * 4
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "trades" in (out / "comparison.svg").read_text()
    again = timm_robust.evaluate(out / "trades-seed3", few_digits, attacks=["fgsm"], examples=20, seed=3, quiet=True)
    assert again.attacks["fgsm"]["robust_accuracy"] == robust[1]


def test_resume_takes_goes_on_and_adds(compare_small, tmp_path, monkeypatch):
    out = tmp_path / "comparison"

    def pulled(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NFGSMTraining, "on_epoch_start", pulled)
        with pytest.raises(KeyboardInterrupt):
            compare_small(["fgsm", "n-fgsm"])
    assert "not finished" in (out / "comparison.md").read_text()
    assert len(metrics(out / "n-fgsm-seed0")) == 1
    kept = metrics(out / "n-fgsm-seed0")[0]
    stamp = (out / "fgsm-seed0/metrics.jsonl").stat().st_mtime_ns

    with pytest.raises(UserError, match="holds another comparison: continue it with --resume"):
        compare_small(["fgsm", "n-fgsm"])
    with pytest.raises(UserError, match="was started with epochs=2, not 3"):
        compare_small(["fgsm", "n-fgsm"], epochs=3, resume=True)
    with pytest.raises(UserError, match="options of n-fgsm={}"):
        compare_small(["n-fgsm"], method_args={"n-fgsm": {"noise_ratio": 1}}, resume=True)
    with pytest.raises(UserError, match="nothing to resume in"):
        compare_small(["fgsm"], output="nothing", resume=True)

    # only what is new is named: the others stay
    result = compare_small(["standard"], resume=True)
    assert [run.method for run in result.done] == ["fgsm", "n-fgsm", "standard"]
    assert (out / "fgsm-seed0/metrics.jsonl").stat().st_mtime_ns == stamp
    rows = metrics(out / "n-fgsm-seed0")
    assert len(rows) == 2 and rows[0] == kept
    alone = compare_small(["n-fgsm"], output="alone")
    assert alone.rows()[0]["last"] == result.rows()[1]["last"]

    # another attack is measured, and nothing trained again
    result = compare_small([], resume=True, test_attacks=["clean", "fgsm", "pgd-2"])
    assert set(result.rows()[0]["attacks"]) == {"fgsm", "pgd-2-1"} and metrics(out / "n-fgsm-seed0") == rows
    again = compare_small([], resume=True, test_attacks=None)  # as before, and not the defaults
    assert again.rows() == result.rows()


def test_modifiers_are_compared_too(compare_small, tmp_path):
    settings = {"method_args": {"awp": {"gamma": 0.02, "start": 0}}, "epochs": 1}
    result = compare_small(["fgsm", "fgsm+awp"], **settings)
    assert [(row["method"], row["modifiers"]) for row in result.rows()] == [
        ("fgsm", {}),
        ("fgsm+awp", {"awp": {"gamma": 0.02, "start": 0.0}}),
    ]
    assert (tmp_path / "comparison/fgsm+awp-seed0/best").is_dir()
    plain, perturbed = (row["passes"] for row in result.rows())
    assert plain < perturbed  # the passes for the weights
    with pytest.raises(UserError, match="options of awp="):
        compare_small([], method_args={"awp": {"gamma": 0.03}}, epochs=1, resume=True)


def test_a_run_that_fails_keeps_the_others(compare_small, tmp_path, monkeypatch):
    out = tmp_path / "comparison"

    def broken(self, batch, perturbed):
        raise ValueError("no such shape\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(NFGSMTraining, "loss", broken)
        result = compare_small(["n-fgsm", "fgsm"])
    assert [run.method for run in result.failed] == ["n-fgsm"] and [run.method for run in result.done] == ["fgsm"]
    assert "n-fgsm, seed 0 failed: ValueError: no such shape (see n-fgsm-seed0-error.txt)" in repr(result)
    assert "failed" in result.rows()[0]["happened"] and result.rows()[0]["clean"] is None
    assert "in broken" in (out / "n-fgsm-seed0-error.txt").read_text()
    assert json.loads((out / "comparison.json").read_text())["runs"][0]["status"] == "failed"

    result = compare_small(["n-fgsm", "fgsm"], resume=True)
    assert not result.failed and len(result.done) == 2 and not (out / "n-fgsm-seed0-error.txt").exists()


@pytest.mark.parametrize(
    ("methods", "settings", "sentence"),
    [
        (["fgsm", "n-fgsmm"], {}, "unknown method 'n-fgsmm': did you mean n-fgsm"),
        ([], {}, "pass at least one method"),
        (["fgsm", "fgsm"], {}, "method 'fgsm' is given twice"),
        (["fgsm"], {"seeds": []}, "at least one seed"),
        (["fgsm"], {"seeds": [0, 0]}, "seed 0 is given twice"),
        (["fgsm"], {"seeds": [-1]}, "seed -1 is out of range"),
        (["fgsm"], {"seeds": ["a"]}, "seed 'a' is out of range"),
        (["fgsm", "trades"], {"method_args": {"trades": {"betta": 3}}}, "unknown option 'betta'"),
        (["fgsm"], {"method_args": {"trades": {"beta": 3}}}, "unknown method or modifier 'trades'.*not compared"),
        (["fgsm+swap"], {}, "unknown modifier 'swap': did you mean swa"),
        (["fgsm+awp+awp"], {}, "modifier 'awp' twice"),
        (["fgsm+awp"], {"method_args": {"awp": {"gama": 3}}}, "unknown option 'gama'"),
        (["fgsm+ema"], {}, "'ema' is a recipe setting here"),
        (["pgd", "n-fgsm"], {"norm": "L2"}, "'n-fgsm' knows the norm Linf only, not L2"),
        (["fgsm"], {"activation": "silu"}, "unknown setting 'activation'"),
        (["fgsm"], {"test_attacks": ["pgdd"]}, "unknown attack 'pgdd'"),
        (["fgsm"], {"model": "resnet19"}, "unknown model 'resnet19'"),  # of all runs alike: no failure of one
        (["fgsm"], {"resume": True, "output": None}, "resume needs the folder"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_input_is_refused_before_anything_is_trained(
    tmp_path, few_digits, monkeypatch, methods, settings, sentence
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        timm_robust.compare(methods, data=few_digits, **{"output": "out", "quiet": True, **settings})
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        timm_robust.compare(["fgsm"])
