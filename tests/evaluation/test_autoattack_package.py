"""The installed AutoAttack package: either interface, and no namesake."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from tests.support import labelled, network
from timm_robust.evaluation import autoattack
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.threat import Threat


class FakeAuthorsPackage:
    """The interface of the authors' package, around the released implementation."""

    def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, version="standard", device="cuda"):
        from pyautoattack import AutoAttack

        self.inner = AutoAttack(model, norm=norm, eps=eps, seed=seed, version=version, device=device)
        self.apgd, self.apgd_targeted, self.fab = self.inner.apgd, self.inner.apgd_targeted, self.inner.fab
        self.square = self.inner.square


def test_the_authors_interface_gives_the_same(monkeypatch):
    """Where the git package `autoattack` is installed its own code runs here; else its interface around the release."""
    try:
        import autoattack  # noqa: F401
    except ImportError:
        import pyautoattack

        fake = type(sys)("autoattack")
        fake.AutoAttack = FakeAuthorsPackage
        monkeypatch.setitem(sys.modules, "autoattack", fake)
        monkeypatch.setitem(sys.modules, "autoattack.checks", pyautoattack.checks)
    model = network()
    images, targets = labelled(model, 10)
    threat = Threat("Linf", 2 / 255, "2/255")
    inputs, found = EvalInputs(model, images, targets, threat), []
    for package in ("autoattack", "pyautoattack"):
        monkeypatch.setattr("timm_robust.evaluation.autoattack.implementation", lambda package=package: package)
        found.append(run_autoattack(inputs, settings=EvalSettings(batch_size=5)))
    one, two = found
    assert torch.equal(one.robust, two.robust) and one.after == two.after


@pytest.mark.parametrize("file", ["autoattack.py", "autoattack/notes.txt"])
def test_a_script_or_folder_called_autoattack_is_not_taken_for_the_package(file, tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")
    if "autoattack" in sys.modules or importlib.util.find_spec("autoattack"):
        pytest.skip("the authors' package is installed")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert autoattack.implementation() == "pyautoattack"
