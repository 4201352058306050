"""The model zoo: listed, and loaded from local files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.robustbench.conftest import write_package
from timm_robust.cli import main
from timm_robust.errors import UserError
from timm_robust.robustbench import list_zoo, load_zoo


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
