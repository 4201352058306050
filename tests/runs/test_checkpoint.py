"""Checkpoints load without plugins and without unpickling, and damage is named."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import timm_robust
from tests.support import SMALL
from timm_robust.errors import UserError
from timm_robust.runs.checkpoint import load_state


@pytest.mark.parametrize(
    "settings", [{}, {"activation": "smoothrelu"}, {"recipe_args": {"ema": 0.5, "check_attack": "pgd-1-1"}}]
)
def test_load_gives_the_trained_network(train_small, settings):
    result = train_small("sat", epochs=1, **settings)
    model = timm_robust.load(result.output / "last")
    assert not model.training
    metadata = json.loads((result.output / "last/model.json").read_text())
    assert metadata["threat"]["eps_text"] == "8/255" and metadata["method"] == "sat"
    assert model(torch.rand(3, 3, 8, 8)).shape == (3, 10)
    assert result.model(torch.rand(3, 3, 8, 8)).shape == (3, 10)


def test_inner_weights_load_into_the_bare_timm_model(train_small):
    output = train_small(epochs=1).output
    bare = timm.create_model("resnet18", num_classes=10, **SMALL)
    bare.load_state_dict(load_file(output / "best/model.safetensors"), strict=True)
    record = json.loads((output / "best/model.json").read_text())["model"]
    timm.create_model(record["architecture"], num_classes=record["num_classes"], **record["model_kwargs"])


@pytest.mark.parametrize("place", ["", "best", "last", "best/model.safetensors"])
def test_places(train_small, place):
    output = train_small(epochs=1).output
    assert timm_robust.load(output / place)(torch.rand(1, 3, 8, 8)).shape == (1, 10)


def test_plugin_networks_load_without_the_plugin_machinery(train_small):
    output = train_small(
        model="preact_resnet18_cifar", model_kwargs={}, epochs=1, recipe_args={"check_examples": 2}
    ).output
    assert timm_robust.load(output)(torch.rand(1, 3, 8, 8)).shape == (1, 10)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def forward(self, x):
        return self.layers(x)


def test_a_module_of_ones_own(train_small):
    output = train_small(model=Own(), model_kwargs=None, epochs=1).output
    with pytest.raises(UserError, match="your own .*Own"):
        timm_robust.load(output)
    assert timm_robust.load(output, model=Own())(torch.rand(1, 3, 8, 8)).shape == (1, 10)


def test_damage_is_named(train_small, tmp_path):
    output = train_small(epochs=1).output
    weights = output / "best/model.safetensors"
    whole = weights.read_bytes()

    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.safetensors cannot be read, it may be truncated"):
        timm_robust.load(output)

    save_file({"other": torch.zeros(3)}, weights)
    with pytest.raises(UserError, match="does not fit ResNet: .* is missing; it holds another model's weights"):
        timm_robust.load(output)

    tensors = load_file(output / "last/model.safetensors")
    save_file({**tensors, "fc.weight": torch.zeros(4, 16)}, weights)
    with pytest.raises(UserError, match="'fc.weight' has another shape"):
        timm_robust.load(output)

    weights.unlink()
    with pytest.raises(UserError, match="has no model.safetensors: the checkpoint is incomplete"):
        timm_robust.load(output)

    (output / "best/model.json").write_text("{")
    with pytest.raises(UserError, match="model.json cannot be read"):
        timm_robust.load(output)

    (output / "last/state.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="state.pt cannot be read, it may be truncated"):
        load_state(output / "last")


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="does not exist: expected a run's folder"):
        timm_robust.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no checkpoint"):
        timm_robust.load(tmp_path)


def test_newer_format(train_small):
    output = train_small(epochs=1).output
    metadata = json.loads((output / "best/model.json").read_text())
    (output / "best/model.json").write_text(json.dumps({**metadata, "format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads up to 1: upgrade timm-robust"):
        timm_robust.load(output)
