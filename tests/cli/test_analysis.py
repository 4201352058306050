"""The commands `curve`, `masking`, `transfer`, `corruptions` and `paired`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import timm_robust
from timm_robust.cli.app import app


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs a command line in this process; returns what it printed."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(args=[str(one) for one in arguments], prog_name="timm-robust")
        run.status = ended.value.code
        return capsys.readouterr().out

    return run


def test_commands(train_small, tmp_path, cifar_c, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = train_small("fgsm-rs", output="one", data="digits", epochs=1).output
    two = train_small("fgsm-rs", output="two", data="digits", epochs=1, seed=1).output
    out = command(
        "curve", one, two, "--eps-values", "0", "8/255", "--attack", "fgsm", "--examples", "20", "--json", "c.json"
    )
    assert command.status == 0 and "8/255" in out and "picture: curve.svg" in out
    record = json.loads(Path("c.json").read_text())
    assert list(record["curves"]) == [str(one), str(two)] and record["curves"][str(one)]["n_examples"] == 20
    svg = Path("curve.svg").read_text()
    assert ">one " in svg and ">two " in svg, "without the folders that they share"

    out = command("masking", one, "--examples", "20", "--draws", "3", "--json", "m.json")
    record = json.loads(Path("m.json").read_text())
    assert len(record["checks"]) == 5 and record["threat"]["eps_text"] == "8/255" and "random noise beats" in out
    assert command.status == int(any(not check["passed"] for check in record["checks"]))

    out = command(
        "transfer", one, "--from", two, one, "--attack", "torchattacks:MIFGSM", "--examples", "20", "--json", "t.json"
    )
    record = json.loads(Path("t.json").read_text())
    assert command.status == 0 and "all of them" in out and record["n_examples"] == 20
    assert set(record["robust_accuracy"]) == {str(one), str(two)}

    out = command("corruptions", one, "--data", cifar_c, "--only", "fog", "snow", "--json", "k.json")
    assert command.status == 0 and "snow" in out and "pixelate" not in out
    assert set(json.loads(Path("k.json").read_text())["accuracy"]) == {"fog", "snow"}

    for name, folder in (("a", one), ("b", two)):
        timm_robust.evaluate(folder, attacks=["fgsm"], examples=30, json=f"{name}.json", quiet=True)
    out = command("paired", "a.json", "b.json")
    a, b = (json.loads(Path(f"{name}.json").read_text())["attacks"]["fgsm"]["robust"] for name in "ab")
    assert command.status == 0 and f"{100 * (sum(a) - sum(b)) / 30:+.2f}" in out
