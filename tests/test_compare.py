"""Comparisons of real small runs: the table has their numbers, nothing finished is lost or repeated."""

from __future__ import annotations

import json
import statistics
import sys

import pytest
from rich.console import Console
from timm_robust_plugins.n_fgsm.n_fgsm import NFGSMTraining

import timm_robust
from tests.conftest import SMALL
from timm_robust import UserError
from timm_robust.cli import by_method, main
from timm_robust.report import Comparison
from timm_robust.report.curves import curve, draw, first_collapse, spread_out
from timm_robust.runs.finished import FinishedRun


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
    again = timm_robust.evaluate(out / "trades-seed3", few_digits, attacks=["fgsm"], n_examples=20, seed=3, quiet=True)
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


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["timm-robust", "compare", *arguments])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    fast = ["--model-kwargs", "layers=[1,1,1,1]", "channels=[8,8,16,16]", "--epochs", "1", "--test-attack", "clean"]
    started = ["--methods", "fgsm,n-fgsm", "--seeds", "5", *fast, "-o", "n-fgsm.noise_ratio=1", "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(NFGSMTraining, "loss", lambda *_: 1 / 0)
        status, out, err = call(*started)
    assert status == 1 and "run 2 of 2: n-fgsm, seed 5" in err and "1 of 2 runs failed" in err
    assert "fgsm" in out and "ZeroDivisionError" in out and "Traceback" not in err

    with monkeypatch.context() as patch:
        patch.setattr(NFGSMTraining, "on_epoch_start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        status, out, err = call("--resume", "--output", "out")
    assert status == 130 and "continue with: timm-robust compare --resume --output out" in err
    assert "run 1 of 2: fgsm, seed 5: finished before" in err

    status, out, err = call("--resume", "--output", "out")
    assert status == 0 and "timm-robust evaluate out/fgsm-seed5" in out and "failed" not in out
    assert json.loads((tmp_path / "out/n-fgsm-seed5/manifest.json").read_text())["method_args"]["noise_ratio"] == 1.0
    for wrong in (["-o", "steps=3"], ["--seeds", "0,a"], ["--methods", "fgsmm"], []):
        status, out, err = call(*["--methods", "fgsm", *wrong, "--output", "out"])
        assert status == 2 and len(err.strip().splitlines()) == 1, err
    status, out, _ = call("--help")
    assert status == 0 and "Example: timm-robust compare" in " ".join(out.split())


def test_options_by_method():
    assert by_method(["moat.stages=r2", "trades.beta=5", "trades.steps=1"]) == {
        "moat": {"stages": "r2"},
        "trades": {"beta": 5, "steps": 1},
    }
    for wrong in ("beta=5", ".beta=5", "trades.=5", "trades.beta"):
        with pytest.raises(UserError):
            by_method([wrong])


def a_run(method, seed, robust, collapse=None, answer="warn", robust_correct=(1, 0), tmp="."):
    history = [
        {"epoch": i, "val_robust": value, "seconds": 1.0, "passes": 2.0, "best": i == 1}
        for i, value in enumerate(robust, 1)
    ]
    if collapse:
        history[-1]["events"] = [{"epoch": collapse, "answer": answer}]
    run = FinishedRun(method, seed, tmp, done=True, history=history)
    run.evaluation = {
        "n_examples": 4,
        "clean_accuracy": 0.5,
        "attacks": {"autoattack": {"n_examples": len(robust_correct), "robust": list(robust_correct)}},
    }
    run.manifest = {
        "model": {"architecture": "resnet18"},
        "data": {"name": "digits"},
        "threat": {"norm": "Linf", "eps_text": "8/255"},
        "recipe": {"epochs": 3, "check_attack": "pgd-10-1"},
        "method_args": {},
    }
    return run


def test_collapse_and_images_in_common(tmp_path):
    runs = [
        a_run("fgsm", 0, [0.3, 0.4, 0.0], collapse=3, robust_correct=(1, 1, 1)),
        a_run("fgsm", 1, [0.3, 0.4, 0.0], collapse=2),
        a_run("fgsm", 2, [0.3, 0.4, 0.4]),
        a_run("sat", 0, [0.3, 0.4, 0.0], collapse=2, answer="stop"),
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


def test_the_picture(tmp_path):
    seeds = [a_run("fgsm", seed, [0.1 * seed, 0.4, 0.0], collapse=4 - seed).history for seed in (1, 2)]
    assert curve([seeds[0], seeds[1][:2]]) == (
        [1, 2, 3],
        [pytest.approx(0.15), 0.4, 0.0],
        [0.1, 0.4, 0.0],
        [0.2, 0.4, 0.0],
    )
    assert [first_collapse(run) for run in (*seeds, seeds[0][:1])] == [3, 2, None]
    file = tmp_path / "many.svg"
    draw({f"method-{i}": seeds for i in range(16)}, [file], title="many", notes=["one", "two"])
    text = file.read_text()
    assert all(f"method-{i} " in text for i in range(16)) and "catastrophic overfitting" in text
    draw({"one": [seeds[0][:1]]}, [tmp_path / "one.png"], title="one epoch")


def test_names_move_apart_as_little_as_possible():
    assert spread_out([1, 5, 9], 2, 10) == [1, 5, 9]
    assert spread_out([5, 5, 9], 2, 10) == [4, 6, 9]
    assert spread_out([0, 0, 10], 2, 10) == [0, 2, 10]
    assert spread_out([10, 10, 10], 2, 10) == [6, 8, 10]
    assert spread_out([], 2, 10) == []
