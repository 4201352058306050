"""RobustBench: the record's rules against the published ones, the bundle, the released package through the adapter."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import timm_robust
from timm_robust.cli import main
from timm_robust.errors import UserError
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.models.factory import build_model
from timm_robust.robustbench import (
    BOARDS,
    Paper,
    benchmark,
    check_id,
    find_board,
    list_zoo,
    load_zoo,
    problems,
    released,
    write_bundle,
)
from timm_robust.robustbench.package import find_package
from timm_robust.robustbench.stand_in import AutoAttack, stand_in
from timm_robust.runs.checkpoint import save_model
from timm_robust.threat import make_threat

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


# the record ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def published() -> dict[str, dict]:
    """RobustBench's published records, one by DATASET/THREAT/ID.json."""
    given = os.environ.get("TIMM_ROBUST_ROBUSTBENCH")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data" / "robustbench"
    if not (folder / "model_info.json").is_file():
        pytest.skip("needs RobustBench's records: set TIMM_ROBUST_ROBUSTBENCH to the folder with model_info.json")
    return json.loads((folder / "model_info.json").read_text())


def test_the_rules_hold_for_all_published_records_but_the_known_exceptions(published):
    assert len(published) == 236
    found = {key: problems(record, *key.split("/")[:2]) for key, record in published.items()}
    sentences = [sentence for many in found.values() for sentence in many]
    told = {
        "old radius": [s for s in sentences if s == "eps is '0.031', the board's is '8/255'"],
        "other folder": [s for s in sentences if s.startswith("dataset is 'cifar10', the folder says 'cifar100'")],
        "the word null": [s for s in sentences if s.startswith("reported is 'null'")],
        "no authors": [s for s in sentences if s == "authors is empty: expected text"],
    }
    assert [len(many) for many in told.values()] == [6, 5, 1, 3]
    assert sum(map(len, told.values())) == len(sentences), sentences


def test_the_id_rule_holds_for_all_but_nine(published):
    def follows(model_id: str) -> bool:
        try:
            return check_id(model_id) == model_id
        except UserError:
            return False

    others = sorted(name for key in published if not follows(name := Path(key).stem))
    assert len(published) - len(others) == 227
    assert set(others) == {
        "AlexNet", "Geirhos2018_SIN", "Geirhos2018_SIN_IN", "Geirhos2018_SIN_IN_IN", "Standard", "Standard_R50",
    }  # fmt: skip


def test_the_boards_are_those_of_the_published_records(published):
    norms = {tuple(key.split("/")[:2]) for key in published if key.split("/")[1] != "corruptions"}
    assert norms == set(BOARDS)
    for place, board in BOARDS.items():
        radii = [record["eps"] for key, record in published.items() if tuple(key.split("/")[:2]) == place]
        assert max(set(radii), key=radii.count) == board.eps_text
    assert find_board("CIFAR-10", "linf").eps == 8 / 255 and find_board("imagenet", "Linf").eps == 4 / 255


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eps": 8 / 255}, "eps is 0.03137254901960784: expected text"),
        ({"eps": "4/255"}, "eps is '4/255', the board's is '8/255'"),
        ({"clean_acc": 54.3}, "clean_acc is 54.3: expected number as text"),
        ({"clean_acc": "54.30%"}, "clean_acc is '54.30%'"),
        ({"autoattack_acc": "126.00"}, "autoattack_acc is '126.00'"),
        ({"additional_data": "false"}, "additional_data is 'false': expected true or false"),
        ({"number_forward_passes": True}, "number_forward_passes is True"),
        ({"venue": None}, "venue is empty"),
        ({"acc": "1"}, "acc is no field of RobustBench"),
        ({"dataset": "CIFAR10"}, "the folder says 'cifar10'"),
    ],
)
def test_a_wrong_record_is_told(change, sentence):
    good = {
        "link": "a", "name": "a", "authors": "a", "additional_data": False, "number_forward_passes": 1,
        "dataset": "cifar10", "venue": "a", "architecture": "a", "eps": "8/255", "clean_acc": "54.30", "reported": "",
        "autoattack_acc": "26.56",
    }  # fmt: skip
    assert problems(good, "cifar10", "Linf") == []
    assert any(sentence in problem for problem in problems({**good, **change}, "cifar10", "Linf"))
    del good["autoattack_acc"]
    assert problems(good, "cifar10", "Linf") == ["autoattack_acc is missing"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: find_board("cifar11", "Linf"), "unknown RobustBench data set 'cifar11': did you mean cifar10"),
        (lambda: find_board("imagenet", "L2"), "unknown RobustBench threat model for imagenet 'L2'"),
        (lambda: check_id("my-model"), "model id 'my-model': RobustBench expects <Name><Year><FirstWordOfTitle>"),
        (lambda: check_id("Doe26Smooth"), "model id 'Doe26Smooth'"),
        (lambda: check_id("Doe2026Smooth_R 18"), "model id"),
        (lambda: check_id("Doe2026Smooth/../x"), "model id"),
    ],
)
def test_unknown_boards_and_ids(call, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        call()


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
    arguments = ["submit", str(run), "--record", str(tmp_path / "e.json"), "--id", "Doe2026Cli", "--out"]
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

FAKE = {
    "__init__.py": "",
    "helper_files/list.txt": "ok",
    "loaders.py": (
        "import pkg_resources\n"
        "WORDS = open(pkg_resources.resource_filename(__name__, 'helper_files/list.txt')).read()\n"
    ),
    "model_zoo/enums.py": (
        "from enum import Enum\n"
        "class BenchmarkDataset(Enum):\n    cifar_10 = 'cifar10'\n"
        "class ThreatModel(Enum):\n    Linf = 'Linf'\n    corruptions_3d = 'corruptions_3d'\n"
    ),
    "model_zoo/__init__.py": (
        "from timm.models.registry import register_model\n"
        "from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel\n"
        "model_dicts = {BenchmarkDataset.cifar_10: {ThreatModel.Linf: {\n"
        "    'Doe2020One': {'gdrive_id': 'abc'}, 'Doe2020Many': {'gdrive_id': ['a', 'b']}}}}\n"
    ),
    "utils.py": (
        "import torch\n"
        "def load_model(model_name, model_dir, dataset, threat_model):\n"
        "    path = f'{model_dir}/{dataset}/{threat_model}/{model_name}.pt'\n"
        "    model = torch.nn.Linear(2, 2)\n"
        "    model.load_state_dict(torch.load(path, map_location='cpu'))\n"
        "    return model\n"
    ),
    "eval.py": (
        "from autoattack import AutoAttack\n"
        "from autoattack.state import EvaluationState\n"
        "from robustbench.loaders import WORDS\n"
        "def load_clean_dataset(dataset, n, folder, transform):\n    raise FileNotFoundError(folder)\n"
        "def benchmark(model, n_examples, dataset, threat_model, data_dir, device, batch_size, eps, log_path,\n"
        "              preprocessing):\n"
        "    x, y = load_clean_dataset(dataset, n_examples, data_dir, preprocessing)\n"
        "    a = AutoAttack(model, norm=threat_model, eps=eps, version='standard', device=device, log_path=log_path)\n"
        "    adversarial = a.run_standard_evaluation(x, y, bs=batch_size, state_path=None)\n"
        "    share = lambda images: (model(images).argmax(1) == y).float().mean().item()\n"
        "    return share(x), share(adversarial)\n"
    ),
}
"""What of the released package the adapter has to get past, and its interface, in a few lines."""


def write_package(folder: Path, without: tuple[str, ...] = ()) -> None:
    for name, text in FAKE.items():
        if name not in without:
            path = folder / "robustbench" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture
def fresh():
    """No robustbench is imported, before and after."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    forget()
    yield
    forget()


@pytest.fixture(params=["real", "interface"])
def robustbench(request, fresh, tmp_path, monkeypatch):
    """The real package where it is installed, and a stand-in with its imports and its interface everywhere."""
    if request.param == "interface":
        write_package(tmp_path / "site")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
    else:
        try:
            with released():
                pass
        except UserError as error:
            pytest.skip(str(error))
    return request.param


def network() -> nn.Module:
    """A small network with large gradients, so that attacks break some images and not others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, 10))
    with torch.no_grad():
        model[-1].weight.mul_(8)
    return model.eval()


def labelled(model: nn.Module, n: int = 16):
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = model(images).argmax(1)
    targets[:2] = (targets[:2] + 1) % 10
    return images, targets


@functools.cache
def reference():
    model = network()
    images, targets = labelled(model)
    threat = make_threat("Linf", "4/255", image_size=8)
    return model, images, targets, run_autoattack(model, images, targets, threat, batch_size=9, seed=3)


def test_benchmark_and_reference_mode_give_the_same_verdicts(robustbench, tmp_path):
    model, images, targets, ours = reference()
    hook, generator = sys.gettrace(), torch.random.get_rng_state()
    log = tmp_path / "aa.log"
    theirs = benchmark(model, eps="4/255", batch_size=9, seed=3, images=images, targets=targets, log_path=log)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert torch.equal(theirs.robust, ours.robust)
    assert 0 < ours.robust.float().mean() < 14 / 16, "the case must tell something"
    assert theirs.clean_accuracy == pytest.approx(14 / 16)
    assert theirs.robust_accuracy == pytest.approx(ours.robust.float().mean().item())
    assert sys.gettrace() is hook and torch.equal(torch.random.get_rng_state(), generator)
    assert "initial accuracy: 87.50%" in log.read_text() and "robust accuracy after SQUARE" in log.read_text()


def test_evaluate_runs_it_on_the_same_images(robustbench, train_small, few_digits):
    output = train_small(epochs=1).output
    entries = timm_robust.evaluate(
        output, few_digits, attacks=["autoattack"], n_examples=4, robustbench=True, quiet=True
    ).attacks
    assert entries["robustbench"]["robust"] == entries["autoattack"]["robust"]
    assert entries["robustbench"]["implementation"].startswith("robustbench ")


def test_evaluate_without_it_says_so_before_measuring(train_small, few_digits, monkeypatch):
    output = train_small(epochs=1).output

    def absent():
        raise UserError("RobustBench is not installed")

    monkeypatch.setattr("timm_robust.robustbench.package.find_package", absent)
    monkeypatch.setattr("timm_robust.evaluation.evaluate.evaluate_model", None)
    with pytest.raises(UserError, match="RobustBench is not installed"):
        timm_robust.evaluate(output, few_digits, robustbench=True, quiet=True)


def test_the_adapter_leaves_no_stand_in_behind(robustbench):
    missing = [name for name in ("pkg_resources", "autoattack") if importlib.util.find_spec(name) is None]
    with released() as package:
        assert callable(package.eval.benchmark) and callable(package.utils.load_model)
    assert not any(name in sys.modules for name in (*missing, "autoattack.state"))
    importlib.import_module("robustbench.eval")  # stays importable


def test_benchmark_refuses_what_it_cannot_measure(robustbench):
    model = network()
    images, targets = labelled(model)
    for settings, sentence in [
        ({"images": images}, "go together"),
        ({"images": images, "targets": targets, "n_examples": 17}, "n_examples is 17, there are only 16"),
        ({"dataset": "mnist"}, "unknown RobustBench data set 'mnist'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            benchmark(model, **settings)
    with pytest.raises(UserError, match="train mode"):
        benchmark(network().train(), images=images, targets=targets)


def test_the_old_copy_and_a_broken_install_are_told_apart(fresh, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write_package(tmp_path, without=("helper_files/list.txt",))
    with pytest.raises(UserError, match="old copy of RobustBench that torchattacks carries.*pip install"):
        find_package()
    write_package(tmp_path)
    assert find_package() == tmp_path / "robustbench"
    (tmp_path / "robustbench" / "utils.py").write_text("import a_missing_module\n")
    with pytest.raises(UserError, match="RobustBench cannot be imported .*a_missing_module"), released():
        pass
    assert not any(name.partition(".")[0] == "robustbench" for name in sys.modules), "no half of it stays"


def test_the_stand_in_has_the_authors_interface(tmp_path):
    """Names and order of the arguments of fra31/auto-attack."""
    assert list(inspect.signature(AutoAttack).parameters) == [
        "model", "norm", "eps", "seed", "verbose", "attacks_to_run", "version", "is_tf_model", "device", "log_path",
    ]  # fmt: skip
    assert list(inspect.signature(AutoAttack.run_standard_evaluation).parameters) == [
        "self", "x_orig", "y_orig", "bs", "return_labels", "state_path",
    ]  # fmt: skip
    state = stand_in()["autoattack.state"].EvaluationState({"apgd-ce"}, path=tmp_path / "s.json")
    state.robust_flags = torch.tensor([True, False])
    assert type(state).from_disk(tmp_path / "s.json").robust_flags.mean().item() == 0.5, "as benchmark asks it"
    with pytest.raises(UserError, match="cannot go on from"):
        AutoAttack(network()).run_standard_evaluation(*labelled(network()), state_path=tmp_path / "s.json")


def test_import_is_light():
    code = "import sys, timm_robust.robustbench, timm_robust.cli; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_zoo_is_listed_and_loads_local_files_only(fresh, tmp_path, monkeypatch):
    write_package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "models"
    one, many = list_zoo("CIFAR-10", "linf", folder)
    assert (one.name, one.here, len(many.files)) == ("Doe2020One", False, 2)
    assert one.files == (str(folder / "cifar10/Linf/Doe2020One.pt"),) and "id=abc" in one.links[0]
    with pytest.raises(UserError, match="did you mean Doe2020One"):
        load_zoo("Doe2020Onw", folder=folder)
    with pytest.raises(UserError, match="the weights of Doe2020One are not in .*: fetch them from https"):
        load_zoo("Doe2020One", folder=folder)
    file = Path(one.files[0])
    with pytest.raises(UserError, match="could not be downloaded"):
        load_zoo("Doe2020One", folder=folder, download=True)
    file.parent.mkdir(parents=True)
    weights = nn.Linear(2, 2).state_dict()
    torch.save(weights, file)
    assert list_zoo(folder=folder)[0].here
    model = load_zoo("Doe2020One", folder=folder)
    assert torch.equal(model.weight, weights["weight"]) and not model.training
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(UserError, match="its download may have been interrupted .*: delete it and fetch it again"):
        load_zoo("Doe2020One", folder=folder)
    torch.save({"weight": Path("x")}, file)
    with pytest.raises(UserError, match="holds more than tensors"):
        load_zoo("Doe2020One", folder=folder)


def test_the_real_zoo_has_its_models(robustbench, monkeypatch, capsys):
    if robustbench == "interface":
        pytest.skip("its zoo is tested above")
    assert "Wang2023Better_WRN-28-10" in [entry.name for entry in list_zoo()]
    assert any("github.com" in entry.links[0] for entry in list_zoo("imagenet")), "those that come through timm"
    monkeypatch.setattr(sys, "argv", ["timm-robust", "zoo", "--threat", "L2", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert len(json.loads(capsys.readouterr().out)) == 21


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
