"""The released package made importable, and nothing left behind."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tests.robustbench.conftest import write_package
from timm_robust.errors import UserError
from timm_robust.robustbench import released
from timm_robust.robustbench.package import find_package


def test_the_adapter_leaves_no_stand_in_behind(robustbench):
    missing = [name for name in ("pkg_resources", "autoattack") if importlib.util.find_spec(name) is None]
    with released() as package:
        assert callable(package.eval.benchmark) and callable(package.utils.load_model)
    assert not any(name in sys.modules for name in (*missing, "autoattack.state"))
    importlib.import_module("robustbench.eval")  # stays importable


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


def test_import_is_light():
    code = "import sys, timm_robust.robustbench, timm_robust.cli; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
