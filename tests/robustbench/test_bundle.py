"""The bundle of a submission, and that its model loads."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import timm_robust
from tests.support import SMALL
from timm_robust.cli import main
from timm_robust.errors import UserError
from timm_robust.models.factory import build_model
from timm_robust.robustbench import Paper, problems, released, write_bundle
from timm_robust.runs.checkpoint import save_model
from timm_robust.threat import make_threat

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


# the bundle ---------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, *, size: int = 32, classes: int = 10, names=CLASSES, activation=None, stem="auto", **more):
    torch.manual_seed(1)
    model = build_model(
        "resnet18", num_classes=classes, image_size=size, model_kwargs=SMALL, activation=activation, stem=stem,
        data_mean=[0.49, 0.48, 0.45], data_std=[0.25, 0.24, 0.26],
    )  # fmt: skip
    save_model(folder, model, {"data": {"name": "cifar10", "class_names": names}, **more})
    return folder


def evaluation(n: int = 10_000, norm: str = "Linf", eps: str = "8/255", **more) -> dict:
    threat = make_threat(norm, eps, image_size=32)
    entry = {
        "robust_accuracy": 0.2656, "n_examples": n, "seconds": 9.5, "implementation": "pyautoattack 0.2.0",
        "version": "standard", "batch_size": 250, "after": {"apgd-ce": 0.3008, "apgd-t": 0.2656},
        "seconds_by_attack": {"apgd-ce": 3.0, "apgd-t": 6.5}, "flags": [], "robust": [0, 1],
    }  # fmt: skip
    return {
        "checkpoint": "/home/me/runs/first/best", "data": "/home/me/cifar10", "n_examples": n, "seed": 0,
        "threat": {"norm": norm, "eps": threat.eps, "eps_text": threat.eps_text}, "clean_accuracy": 0.54299998,
        "versions": {"torch": "2"}, "hardware": "CPU", "attacks": {"autoattack": {**entry, **more}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "plain"),
    [
        ("Doe2026Plain_R-10", {"stem": "none"}, True),
        ("Doe2026Swapped", {"activation": "silu"}, False),
    ],
)
def test_a_bundle_is_complete_and_its_model_loads(tmp_path, monkeypatch, name, settings, plain):
    run, out = checkpoint(tmp_path / "run", **settings), tmp_path / "out"
    paper = Paper(title="Plain Truth", authors="Jane Doe, A B", link="https://x.org", venue="ICML 2026", code="u")
    bundle = write_bundle(run, evaluation(), out, model_id=name, paper=paper)
    assert sorted(bundle.files) == sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    record = json.loads((out / f"model_info/cifar10/Linf/{name}.json").read_text())
    assert problems(record, "cifar10", "Linf") == []
    assert (record["clean_acc"], record["autoattack_acc"], record["eps"]) == ("54.30", "26.56", "8/255")
    assert record["authors"] == "Jane Doe, A B" and record["additional_data"] is False and record["footnote"] is None
    # weights: readable without code, keys of the bare timm network
    weights = torch.load(out / f"{name}.pt", weights_only=True)
    bare = timm.create_model("resnet18", num_classes=10, **SMALL)
    bare.load_state_dict(weights)
    # the route that robustbench.load_model takes first
    module = name.lower().replace("-", "_")
    monkeypatch.syspath_prepend(str(out))
    importlib.import_module(module)
    registered = f"{module}_cifar10_linf"
    assert timm.is_model(registered)
    model = timm.create_model(registered, num_classes=10, pretrained=True, checkpoint_path="").eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = timm_robust.load(run)(images)
        assert torch.equal(model(images), expected)
        if plain:  # an independent look at what it computes
            mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
            by_hand = bare.eval()((images - mean[:, None, None]) / std[:, None, None])
            assert torch.allclose(by_hand, expected, atol=1e-5)
    assert model.state_dict().keys() == weights.keys(), "no prefix and no extra buffer"
    assert ("timm_robust" not in (out / f"{module}.py").read_text()) == plain
    # the texts
    issue, page = (out / "ISSUE.md").read_text(), (out / "README.md").read_text()
    assert f"Title: [New Model] {name}\nLabel: new-model" in issue and "- **Robust accuracy**: 26.56%" in issue
    assert "pyautoattack 0.2.0" in issue and "seed 0" in issue and "Jane Doe, A B" in issue
    assert f"import {module}" in page and "--batch-size 250 --seed 0" in page
    log = (out / "log.txt").read_text()
    assert "initial accuracy: 54.30%" in log and "robust accuracy after APGD-T: 26.56% (total time 9.5 s)" in log
    texts = [path for path in out.rglob("*.*") if path.suffix not in (".pt", ".pyc") and path.is_file()]
    assert "/home/me" not in "".join(path.read_text() for path in texts)
    assert [word for word in bundle.todo if "TODO" in word or "title" in word] == [] and not bundle.draft
    # again, for the same model
    write_bundle(run, evaluation(), out, model_id=name, paper=paper)


def test_a_draft_is_marked_everywhere_and_says_what_is_missing(tmp_path):
    bundle = write_bundle(
        checkpoint(tmp_path / "run"), evaluation(16), tmp_path / "out", model_id="Doe2026Draft", draft=True
    )
    assert bundle.draft and bundle.todo[:5] == ("title", "authors", "link", "venue", "code")
    assert any("additional data" in word for word in bundle.todo)
    out = tmp_path / "out"
    record = json.loads((out / "model_info/cifar10/Linf/Doe2026Draft.json").read_text())
    assert record["footnote"].startswith("DRAFT") and record["venue"] == "TODO"
    assert (out / "ISSUE.md").read_text().startswith("DRAFT") and "**Draft**: 16 of 10000" in (
        out / "README.md"
    ).read_text()


def test_imagenet_preprocessing_is_told_to_robustbench(tmp_path):
    """RobustBench reads size, crop and interpolation from the network's configuration."""
    from timm_robust.robustbench.model_file import build_from

    run = checkpoint(tmp_path / "run", size=96, classes=1000, names=None, stem="none")
    record = evaluation(5000, eps="4/255")
    bundle = write_bundle(run, record, tmp_path / "out", dataset="imagenet", model_id="Doe2026Large")
    model = build_from(tmp_path / "out" / "doe2026large.py", "doe2026large_imagenet_linf")
    assert not timm.is_model("doe2026large_imagenet_linf"), "looking at the file registers nothing"
    cfg = model.default_cfg
    assert (cfg["input_size"], cfg["crop_pct"], cfg["interpolation"]) == ((3, 96, 96), 0.875, "bilinear")
    assert any("imagenet_test_image_ids" in note for note in bundle.notes)


def test_the_id_comes_from_the_paper(tmp_path):
    paper = Paper(title="“Smooth” Adversarial Training", authors="Ci Xie, Ming Tan", venue="arXiv, Jun 2020")
    bundle = write_bundle(checkpoint(tmp_path / "run"), evaluation(), tmp_path / "out", paper=paper)
    assert bundle.model_id == "Xie2020Smooth"


@pytest.mark.parametrize(
    ("record", "board", "sentence"),
    [
        (evaluation(256), {}, "the record is of 256 images, the board takes 10000"),
        (evaluation(eps="4/255"), {"draft": True}, "the record is of Linf 4/255, the board cifar10 is of Linf 8/255"),
        (evaluation(), {"threat": "L2"}, "the record is of Linf 8/255, the board cifar10 is of L2 0.5"),
        (evaluation(implementation="timm-robust fast"), {"draft": True}, "not made in reference mode"),
        (evaluation(mode="fast"), {"draft": True}, "not made in reference mode"),
        (evaluation(version="plus"), {}, "AutoAttack 'plus', the board is of 'standard'"),
        (evaluation() | {"attacks": {"pgd-10-1": {}}}, {}, "the record has no AutoAttack, only pgd-10-1: run timm-rob"),
        (evaluation(), {"dataset": "cifar100"}, "the network has 10 classes and 3 channels, cifar100 has 100"),
        (evaluation(), {"model_id": None}, "a model id is needed"),
    ],
)
def test_what_no_board_takes_is_refused(tmp_path, record, board, sentence):
    run = checkpoint(tmp_path / "run")
    with pytest.raises(UserError, match=sentence):
        write_bundle(run, record, tmp_path / "out", **{"model_id": "Doe2026No", **board})
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_other_networks_and_folders_are_refused(tmp_path):
    run = checkpoint(tmp_path / "run")
    write_bundle(run, evaluation(), tmp_path / "out", model_id="Doe2026One")
    with pytest.raises(UserError, match="already holds the bundle of Doe2026One"):
        write_bundle(run, evaluation(), tmp_path / "out", model_id="Doe2026Two")
    digits = checkpoint(tmp_path / "digits", names=[str(n) for n in range(10)])
    with pytest.raises(UserError, match="classes are 0, 1.* not CIFAR-10's"):
        write_bundle(digits, evaluation(), tmp_path / "two", model_id="Doe2026Two")
    more = checkpoint(tmp_path / "more", extra={"name": "generated"})
    with pytest.raises(UserError, match="extra images .* say --additional-data"):
        write_bundle(more, evaluation(), tmp_path / "two", model_id="Doe2026Two")
    write_bundle(more, evaluation(), tmp_path / "two", model_id="Doe2026Two", paper=Paper(additional_data=True))
    with pytest.raises(UserError, match="the record is of other weights"):
        write_bundle(run, {**evaluation(), "weights": "0" * 16}, tmp_path / "four", model_id="Doe2026Two")
    own = build_model(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), num_classes=10, image_size=8, data_mean=[0.5], data_std=[0.5]
    )
    save_model(tmp_path / "own", own, {})
    with pytest.raises(UserError, match="your own"):
        write_bundle(tmp_path / "own", evaluation(), tmp_path / "three", model_id="Doe2026Own")


def test_the_command(tmp_path, monkeypatch, capsys):
    run = checkpoint(tmp_path / "run")
    (tmp_path / "e.json").write_text(json.dumps(evaluation(16)))
    arguments = ["submit", str(run), "--record", str(tmp_path / "e.json"), "--id", "Doe2026Cli", "--output"]
    monkeypatch.setattr(sys, "argv", ["timm-robust", *arguments, str(tmp_path / "out"), "--draft"])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().out
    assert stop.value.code == 0 and "draft of a submission of Doe2026Cli" in told and "still to fill in: title" in told
    monkeypatch.setattr(sys, "argv", ["timm-robust", *arguments, str(tmp_path / "two")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "16 images, the board takes 10000" in capsys.readouterr().err


# the released package -----------------------------------------------------------------------------------------------


def test_robustbench_itself_loads_a_bundle(robustbench, tmp_path, monkeypatch):
    if robustbench == "interface":
        pytest.skip("needs RobustBench's own load_model")
    run = checkpoint(tmp_path / "run", activation="silu")
    write_bundle(run, evaluation(), tmp_path / "out", model_id="Doe2026Loaded_R-10")
    monkeypatch.syspath_prepend(str(tmp_path / "out"))
    images = torch.rand(2, 3, 32, 32)
    with released() as package, torch.no_grad():
        importlib.import_module("doe2026loaded_r_10")
        model = package.utils.load_model("Doe2026Loaded_R-10", dataset="cifar10", threat_model="Linf")
        assert torch.equal(model(images), timm_robust.load(run)(images))
