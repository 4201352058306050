"""The command line as a user meets it: what it prints, and exit status 2 with one sentence for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.support import run_cli
from timm_robust.cli import main

FAST = ["--model", "resnet18", "--model-kwargs", "layers=[1,1,1,1]", "channels=[8,8,16,16]", "--epochs", "1"]


def test_train_evaluate_resume(tmp_path):
    out = tmp_path / "run"
    done = run_cli("train", *FAST, "--method", "fgsm-rs", "--output", out, "--test-attack", "clean", "fgsm")
    assert done.returncode == 0, done.stderr
    assert "threat Linf 8/255" in done.stderr and "epoch   1/1" in done.stderr
    assert "fgsm" in done.stdout and "next:" in done.stdout and f"timm-robust evaluate {out}" in done.stdout

    again = run_cli("train", *FAST, "--method", "fgsm-rs", "--output", out)
    assert again.returncode == 2 and "holds another run" in again.stderr and "Traceback" not in again.stderr

    resumed = run_cli("train", "--resume", "--output", out)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch 1 of 1" in resumed.stderr

    record = tmp_path / "record.json"
    measured = run_cli("evaluate", out, "--attack", "clean", "pgd-2-1", "--examples", "20", "--json", record)
    assert measured.returncode == 0, measured.stderr
    assert json.loads(record.read_text())["attacks"]["pgd-2-1"]["n_examples"] == 20


def test_configuration_file(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: resnet18\nmodel-kwargs: {layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}\nmethod: trades\n"
        "modifier: [awp]\noption: {steps: 1, beta: 3, awp.gamma: 0.02}\nepochs: 5\ntest_attack: none\n"
        "channels-last: false\n"
    )
    line = ["--epochs", "1", "-o", "beta=4", "--channels-last", "--output", "out"]
    done = run_cli("train", "--config", "run.yaml", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["recipe"]["epochs"] == 1 and manifest["modifiers"]["awp"]["gamma"] == 0.02
    assert manifest["method_args"]["beta"] == 4.0 and manifest["method_args"]["steps"] == 1
    assert manifest["asked"]["channels_last"] is True and manifest["asked"]["test_attacks"] == []

    (tmp_path / "run.yaml").write_text("modell: resnet18\n")
    done = run_cli("train", "--config", "run.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "unknown setting in run.yaml 'modell': did you mean model" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--model", "resnet19"], "unknown model 'resnet19': did you mean resnet1"),
        (["train", "--method", "tradez"], "unknown method 'tradez': did you mean trades"),
        (["train", "--method", "trades", "-o", "betta=3"], "'betta'"),
        (["train", "--method", "trades", "-o", "beta=-3"], "is -3"),
        (["train", "--method", "trades", "-o", "beta"], "'beta' is no assignment: expected name=value"),
        (["train", "--eps", "8"], "did you mean 8/255"),
        (["train", "--norm", "L1"], "unknown norm 'L1'"),
        (["train", "--set", "lrr=3"], "unknown recipe setting 'lrr': did you mean lr"),
        (["train", "--recipe", "rise"], "unknown recipe 'rise': did you mean rice"),
        (["train", "--activation", "sillu"], "unknown activation 'sillu': did you mean silu"),
        (["train", "--data", "digitz"], "digitz"),
        (["train", "--data", "empty"], "empty"),
        (["train", "--model-kwargs", "layerz=[1]"], "layerz"),
        (["train", "--precision", "fp16", "--device", "cpu"], "'fp16' needs a GPU"),
        (["train", "--track", "tensorbord"], "tensorbord"),
        (["train", "--resume", "--output", "nothing"], "nothing to resume in nothing"),
        (["train", "--resume"], "resume needs the folder"),
        (["train", "--config", "missing.yaml"], "cannot read the configuration missing.yaml"),
        (["train", "--output", "run", "--resume", "--config", "empty"], "cannot read the configuration empty"),
        (["train", "-o", "awp.gamma=1"], "belongs to 'awp': add --modifier awp"),
        (["methods", "--json", "trades"], "--json trades names no file: expected one such as trades.json"),
        (["evaluate", "nothing"], "checkpoint 'nothing' does not exist"),
        (["methods", "tradez"], "unknown method 'tradez'"),
        (["recipes", "rise"], "unknown recipe 'rise'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_status_two(tmp_path, monkeypatch, capsys, arguments, sentence):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["timm-robust", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in err
    assert len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.glob("**/metrics.jsonl"))


def test_memory_that_does_not_suffice_is_one_sentence(monkeypatch, capsys):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nmore")

    monkeypatch.setattr(sys.modules["timm_robust.cli.app"], "app", full)
    with pytest.raises(SystemExit) as caught:
        main()
    told = capsys.readouterr().err.replace("\n", " ")
    assert caught.value.code == 1
    assert told.startswith("timm-robust: CUDA out of memory: pass a smaller --batch-size")


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = run_cli("train", "--method", "tradez", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean trades" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = run_cli("train", *FAST, "--output", "file/run", cwd=tmp_path)
    assert done.returncode == 2 and "cannot make the folder file/run" in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["train"], ["evaluate"], ["distill"], ["methods"], ["plugins"], ["recipes"], ["models"]]
)
def test_help(command):
    done = run_cli(*command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


def test_interrupt_says_how_to_go_on(tmp_path):
    import signal
    import time

    process = subprocess.Popen(
        [sys.executable, "-m", "timm_robust", "train", *FAST[:-2], "--epochs=500", "--output", str(tmp_path / "run")],
        stderr=subprocess.PIPE, text=True,
        # a shell starts background jobs with SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "run/last/state.pt").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "continue with: timm-robust train --resume --output" in err
