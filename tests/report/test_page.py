"""The page about runs, and the command that writes it."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import pytest

import timm_robust
from tests.support import SMALL, epoch_rows
from timm_robust.cli import main
from timm_robust.errors import UserError
from timm_robust.report.page import make_report, page
from timm_robust.report.panels import panels_of
from timm_robust.runs.finished import FinishedRun
from timm_robust.runs.history import ROBUST_OVERFITTING, best_and_last, overfitting_line


class Tags(HTMLParser):
    """Refuses what would be fetched, and elements that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.names = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        for name, value in attributes:
            assert "//" not in value, f"{tag} {name}={value}"
            assert "href" not in name or value.startswith("#")
            assert name != "src"
            if name == "id":
                self.names.append(value)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(path):
    tags, content = Tags(), path.read_text()
    tags.feed(content)
    assert not tags.open and "http" not in content and "@import" not in content
    assert len(set(tags.names)) == len(tags.names), "no two elements have the same name"
    assert all(ref in tags.names for ref in re.findall(r'(?:href="#|url\(#)([^")]+)', content))
    return tags


def test_the_page(overfitted, train_small, tmp_path):
    _, result = overfitted
    plain = train_small(epochs=1)
    out = timm_robust.make_report([result.output, str(plain.output)], tmp_path / "report.html")
    tags = parsed(out)
    text = " ".join(tags.text)
    assert tags.seen.count("svg") == 3, "all runs together, and each by itself"
    assert overfitting_line(result.history) in text and overfitting_line(plain.history) in text
    for told in ("pgd", "fgsm-rs", "resnet18", "Linf 8/255", f"{len(result.history)} of 40", "gap", "wrong at best"):
        assert told in text
    high, low = best_and_last(result.history)["test"]
    for number in (high, low, high - low):
        assert f"{100 * number:.1f}" in tags.text
    assert f"robust overfitting: the run ended after epoch {len(result.history)}" in text
    titles = [panel.title for panel in panels_of(result.history)]
    assert titles[0] == "Robust accuracy" and len(titles) == 6, "labels that nobody refined have no panel"
    assert [mark[0] for mark in panels_of(result.history)[0].marks] == [ROBUST_OVERFITTING]
    assert [panel.title for panel in panels_of(plain.history)] == ["Robust accuracy"]
    again = make_report(result.output, out)
    assert parsed(again).seen.count("svg") == 1


def a_run(folder, rows, **manifest):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "manifest.json").write_text(json.dumps({"method": "pgd", "recipe": {"epochs": 9}, **manifest}))
    return folder


def test_odd_names_and_collapses(tmp_path):
    rows = epoch_rows(0.4, 0.0)
    rows[0]["events"] = [{"epoch": 2, "step": 0, "answer": "stop", "seen_on": "validation", "robust": 0, "best": 0.4}]
    odd = a_run(tmp_path / "a $x$ <b> & \"c'", rows, modifiers={"swa": {}}, data={"name": "<i>"})
    other = a_run(tmp_path / "d", epoch_rows(0.4))
    tags = parsed(make_report([odd, other], tmp_path / "report.html"))
    text = " ".join(tags.text)
    assert "a $x$ <b> & \"c'" in tags.text and "<i>" in tags.text and "pgd with swa" in tags.text
    assert "catastrophic overfitting in epoch 2: robust accuracy on validation images fell from 40.0% to 0.0%" in text
    twice = a_run(tmp_path / "report.html.d", []).parent / "e"
    twice.mkdir()
    same = a_run(twice / "d", epoch_rows(0.3))
    runs = [FinishedRun("", 0, folder) for folder in (other, same)]
    for run in runs:
        run.read(())
    assert str(other) in page(runs) and str(same) in page(runs), "equal names are told apart"


@pytest.mark.parametrize(
    ("runs", "out", "sentence"),
    [
        ([], "r.html", "pass at least one run"),
        (["nothing"], "r.html", "run '.*nothing' does not exist"),
        (["empty"], "r.html", "empty holds no run: metrics.jsonl or manifest.json is missing, empty or damaged"),
        (["begun"], "r.html", "begun holds no run"),
        (["damaged"], "r.html", "damaged holds no run"),
        (["strange"], "r.html", "strange holds no run"),
        (["good", "nothing"], "r.html", "does not exist"),
        (["good"], "no/r.html", "the folder of the report .* does not exist: make it first"),
        (["good"], "good", "the report cannot be written to .*: Is a directory"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, capsys, runs, out, sentence):
    (tmp_path / "empty").mkdir()
    a_run(tmp_path / "begun", [])
    (a_run(tmp_path / "damaged", epoch_rows(0.3)) / "metrics.jsonl").write_text("{")
    a_run(tmp_path / "strange", [{"loss": 1}])
    a_run(tmp_path / "good", epoch_rows(0.3))
    folders = [tmp_path / run for run in runs]
    with pytest.raises(UserError, match=sentence):
        make_report(folders, tmp_path / out)
    monkeypatch.setattr(sys, "argv", ["timm-robust", "report", *map(str, folders), "--output", str(tmp_path / out)])
    if runs:
        with pytest.raises(SystemExit) as stop:
            main()
        err = capsys.readouterr().err
        assert stop.value.code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("timm-robust: ")
    assert not (tmp_path / "r.html").exists()


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["timm-robust", *arguments])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code
        return capsys.readouterr()

    kwargs = ["--model-kwargs", f"layers={SMALL['layers']}", f"channels={SMALL['channels']}"]
    settings = ["--set", "label_noise=0.5", "diagnose=10", "check_attack=pgd-1", "--test-attack", "none"]
    out, err = call("train", "--method", "fgsm", *kwargs, "--epochs", "1", *settings, "--output", "run")
    assert "label noise 0.5: " in err and "(expected 45.0%" in err
    assert "robust accuracy on validation images: best " in out and "; test images: best " in out
    out, _ = call("report", "run")
    assert out == "report: report.html\n" and parsed(tmp_path / "report.html")
