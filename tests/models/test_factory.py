"""Models: normalisation inside, records that rebuild, and one clear sentence for every mistake."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

from timm_robust.errors import UserError
from timm_robust.models import timm_network
from timm_robust.models.factory import build_model, count_parameters, rebuild
from timm_robust.models.pixel_model import ModelConfig, PixelModel

DATA = {"num_classes": 10, "image_size": 32, "data_mean": [0.4, 0.5, 0.6], "data_std": [0.2, 0.25, 0.3]}


SMALL = "mobilenetv3_small_050"


def build(model: str | nn.Module = SMALL, **changes: Any) -> PixelModel:
    return build_model(model, **{**DATA, **changes})


def test_normalisation_is_inside() -> None:
    model = build().eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(DATA[key]).view(1, 3, 1, 1) for key in ("data_mean", "data_std"))
    with torch.no_grad():
        assert torch.equal(model(images), model.model((images - mean) / std))
    assert not any("mean" in k.split(".")[0] or "std" in k.split(".")[0] for k in model.model.state_dict())
    assert model.training is False and build().training is True


def test_weights_depend_on_the_seed_alone() -> None:
    weights = []
    for size, stem in ((32, "auto"), (32, "none"), (64, "auto")):
        torch.manual_seed(3)
        weights.append(build("resnet18", image_size=size, stem=stem).model.fc.weight)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_record_survives_json_and_rebuilds_the_same_function() -> None:
    model = build(activation="psoftplus", in_chans=1, data_mean=[0.5], data_std=[0.3], image_size=28).eval()
    record = ModelConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert record == model.config and record.activation == "psoftplus:10" and record.mean == [0.5]
    bare = timm.create_model(record.architecture, num_classes=10, **record.model_kwargs)
    bare.load_state_dict(model.model.state_dict(), strict=True)
    again = rebuild(record).eval()
    again.load_state_dict(model.state_dict())
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again(images), model(images))


def test_learnable_activations_are_rebuilt_with_their_parameters() -> None:
    model = build("resnet18", activation="smoothrelu")
    again = rebuild(model.config)
    again.load_state_dict(model.state_dict(), strict=True)


def test_records_of_networks_that_are_not_timms_name_their_module() -> None:
    record = build("wide_resnet28_10_cifar", model_kwargs={"depth": 1, "widths": [8, 16, 32]}).config
    assert record.registered_by == "timm_robust_plugins.cifar_nets.networks" and record.stem == {}
    assert rebuild(record).model.num_features == 32
    assert build().config.registered_by is None
    lost = ModelConfig.from_dict({**record.to_dict(), "registered_by": "no_such_package.networks"})
    with pytest.raises(UserError, match="no_such_package.networks, which belongs to no installed plugin"):
        rebuild(lost)


class Two(nn.Module):
    """A user's own module with a main and an auxiliary head."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.main, self.aux = nn.Linear(3, classes), nn.Linear(3, 7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.mean((2, 3))
        return self.main(x), self.aux(x)


def test_the_users_own_module() -> None:
    own = Two()
    model = build(own)
    assert model.model is own and model.config.architecture is None and model.config.module_class.endswith(":Two")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(
        UserError, match=r"your own .*:Two, which cannot be rebuilt from its configuration: pass an instance"
    ):
        rebuild(model.config)
    again = rebuild(model.config, Two())
    again.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match=r"returns \(2, 5\) for 2 images: expected \(2, 10\)"):
        build(Two(5))
    with pytest.raises(UserError, match="taken as it is"):
        build(Two(), pretrained=True)


def test_frozen_parts_of_the_users_module_stay_frozen() -> None:
    own = nn.Sequential(nn.BatchNorm2d(3).eval(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    model = build(own)
    assert not own[0].training and own[3].training and model.training and own[0].num_batches_tracked == 0


def test_distilled_heads_are_averaged_as_in_eval_mode() -> None:
    model = build("deit_tiny_distilled_patch16_224", model_kwargs={"depth": 1}).eval()
    images = torch.rand(2, 3, 32, 32)
    alone = model(images)
    model.train().model.set_distilled_training(True)
    assert torch.allclose(model(images), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "resnet81"}, "unknown model 'resnet81': did you mean resnet18"),
        ({"model_kwargs": {"no_such": 1}}, "does not take argument no_such=1"),
        ({"model_kwargs": {"act_layer": nn.SiLU}}, "model argument act_layer=.* expected a number, text"),
        ({"model_kwargs": {"num_classes": 5}}, "'num_classes' is set by the run"),
        ({"stem": "automatic"}, "unknown stem 'automatic': did you mean auto"),
        ({"activation": "siluu"}, "unknown activation 'siluu': did you mean silu"),
        ({"image_size": 0}, "image_size 0: expected an integer of at least 1"),
        ({"num_classes": 1}, "num_classes 1: expected an integer of at least 2"),
        ({"data_mean": [0.5, 0.5]}, "data_mean has 2 values: expected 1 or 3"),
        ({"data_std": [0.0]}, "data_std .* above 0"),
        ({"model": "preact_resnet18_cifar", "pretrained": True}, "has no pretrained weights"),
        ({"model": "resnet18.a1_in1"}, "unknown weights 'resnet18.a1_in1': did you mean resnet18.a1_in1k"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        build(changes.pop("model", SMALL), **changes)
    assert "\n" not in str(caught.value)


def _loader(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Stand in for the download: fail, or give the fresh weights."""
    real = timm_network.create

    def create(name: str, num_classes: int, kwargs: Any, pretrained: bool = False) -> nn.Module:
        if pretrained and error is not None:
            raise error
        return real(name, num_classes, kwargs)

    monkeypatch.setattr(timm_network, "create", create)


def test_a_failed_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    _loader(monkeypatch, ConnectionError("no route\nto host"))
    with pytest.raises(UserError, match=r"'resnet18' could not be loaded \(ConnectionError: no route to host\)"):
        build("resnet18", pretrained=True)


def test_pretrained_weights_bring_their_normalisation_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    _loader(monkeypatch, None)
    record = build("resnet18.a1_in1k", pretrained=True).config
    assert record.mean == pytest.approx([0.485, 0.456, 0.406]) and record.pretrained == "a1_in1k"
    assert record.architecture == "resnet18.a1_in1k"
    gray = build("resnet18", pretrained=True, in_chans=1, data_mean=[0.5], data_std=[0.5]).config
    assert gray.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    with pytest.warns(UserWarning, match="BatchNorm statistics no longer fit"):
        build("resnet18", pretrained=True, activation="silu")


def test_unknown_record_entries_are_refused() -> None:
    values = build().config.to_dict()
    with pytest.raises(UserError, match="unknown entry in the model configuration 'sttem': did you mean stem"):
        ModelConfig.from_dict({**values, "sttem": {}})
    del values["num_classes"]
    with pytest.raises(UserError, match="num_classes"):
        ModelConfig.from_dict(values)


def test_parameters_are_counted_once() -> None:
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer)) == 12
    layer.bias.requires_grad_(False)
    assert count_parameters(layer, trainable_only=True) == 9


def test_rebuilding_needs_no_plugin_machinery(monkeypatch: pytest.MonkeyPatch) -> None:
    record = build().config
    monkeypatch.setitem(sys.modules, "timm_robust.plugin", None)  # an import of it would fail
    rebuild(record)
