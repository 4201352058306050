"""Hostile checkpoint folders: loading one runs no code of its own and reads no file that it names."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

import timm_robust
from timm_robust.errors import UserError
from timm_robust.models.timm_network import require_own_arguments

SAMPLE = Path(__file__).parent / "samples" / "v361d98b" / "checkpoint"


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "code-ran"


@pytest.fixture
def hostile(tmp_path, mark, monkeypatch):
    """`hostile(model={...})`: a checkpoint's folder with these entries changed in model.json, and bombs to point to."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(SAMPLE, folder)
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "evil_networks.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**changed):
        content = json.loads((folder / "model.json").read_text())
        content["model"] |= changed
        (folder / "model.json").write_text(json.dumps(content))
        return folder

    yield make
    sys.modules.pop("evil_networks", None)


PATH = "PATH"
"""Stands for the pickle."""

ARGUMENTS = [
    {"checkpoint_path": PATH},
    {"pretrained": True, "pretrained_cfg": {"file": PATH}},
    {"pretrained_cfg": {"file": PATH}},
    {"pretrained_cfg_overlay": {"file": PATH}},
    {"pretrained_cfg": "other_tag"},
    {"pretrained_strict": False},
    {"pretrained_filter_fn": "os.system"},
    {"pretrained_custom_load": True},
    {"cache_dir": PATH},
    {"model_cfg": PATH},
    {"feature_cfg": {}},
    {"kwargs_filter": []},
    {"scriptable": True},
    {"exportable": True},
    {"no_jit": True},
    {"weights_file": PATH},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda one: "+".join(one))
def test_arguments_of_the_loader_are_refused(hostile, tmp_path, mark, arguments):
    text = json.dumps(arguments).replace(PATH, str(tmp_path / "weights.pth"))
    before = json.loads((SAMPLE / "model.json").read_text())["model"]["model_kwargs"]
    folder = hostile(model_kwargs={**before, **json.loads(text)})
    with pytest.raises(UserError, match="belongs to timm's loader"):
        timm_robust.load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["drop_path_rate", "pretrained_window_sizes", "use_checkpoint", "patch_size"])
def test_arguments_of_networks_are_taken(name):
    require_own_arguments({name: 1})


@pytest.mark.parametrize("module", ["evil_networks", "timm_robust_pluginsevil.networks", "antigravity", ""])
def test_only_modules_of_installed_plugins_are_imported(hostile, mark, module):
    folder = hostile(registered_by=module or "timm_robust_plugins_of_nobody")
    with pytest.raises(UserError, match="belongs to no installed plugin"):
        timm_robust.load(folder)
    assert not mark.exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["hf-hub:nobody/evil", "local-dir:checkpoint", "../evil", "evil_networks"])
def test_only_registered_architectures_are_built(hostile, mark, name):
    with pytest.raises(UserError, match="unknown model"):
        timm_robust.load(hostile(architecture=name))
    assert not mark.exists()


def test_weights_and_states_are_never_unpickled(hostile, mark):
    folder = hostile()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match="cannot be read"):
        timm_robust.load(folder)
    torch.save({"epoch": Bomb(mark)}, folder / "state.pt")
    from timm_robust.runs.checkpoint import load_state

    with pytest.raises(UserError, match="cannot be read"):
        load_state(folder)
    assert not mark.exists()


def test_training_refuses_them_too(train_small):
    with pytest.raises(UserError, match="'checkpoint_path' belongs to timm's loader"):
        train_small(model_kwargs={"checkpoint_path": "weights.pth"})


def test_files_follow_the_umask(train_small):
    import os

    before = os.umask(0o022)
    try:
        output = train_small(epochs=1).output
    finally:
        os.umask(before)
    files = [path for path in output.rglob("*") if path.is_file()]
    assert files and all(path.stat().st_mode & 0o777 == 0o644 for path in files)
