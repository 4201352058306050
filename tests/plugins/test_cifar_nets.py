"""The papers' networks: sizes of the literature, timm's interface, and the pre-activation shortcut."""

from __future__ import annotations

import pytest
import timm
import timm_robust_plugins.cifar_nets.networks as networks
import torch
from torch import nn

SIZES = {
    "preact_resnet18_cifar": 11_172_170,
    "resnet18_cifar": 11_173_962,
    "wide_resnet28_10_cifar": 36_479_194,
    "wide_resnet34_10_cifar": 46_160_474,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_and_activations(name: str) -> None:
    for suffix, act, other in (("", nn.ReLU, nn.SiLU), ("_silu", nn.SiLU, nn.ReLU)):
        with torch.device("meta"):
            model = timm.create_model(name + suffix, num_classes=10)
        assert sum(p.numel() for p in model.parameters()) == SIZES[name]
        kinds = {type(m) for m in model.modules()}
        assert act in kinds and other not in kinds


@pytest.mark.parametrize("name", SIZES)
def test_timm_interface(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.1)
        images = torch.zeros(2, 1, 32, 32)
        features = model.forward_features(images)
        assert features.shape == (2, model.num_features, *(model.default_cfg["pool_size"]))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
        assert model(images).shape == (2, 7)
        model.reset_classifier(5)
        assert model(images).shape == (2, 5)
        assert model.get_classifier() is model.fc
        model.reset_classifier(0)
        assert model(images).shape == (2, model.num_features)
    assert model.default_cfg["input_size"] == (3, 32, 32) and model.default_cfg["mean"] == networks.MEAN
    assert [info["num_chs"] for info in model.feature_info][-1] == model.num_features


def test_every_network_is_registered_here() -> None:
    assert len(networks.default_cfgs) == 8
    for name in networks.default_cfgs:
        assert timm.models.model_entrypoint(name).__module__ == "timm_robust_plugins.cifar_nets.networks"


def test_shortcut_starts_from_the_activated_tensor() -> None:
    torch.manual_seed(0)
    block = networks.PreActBlock(4, 8, 2, nn.ReLU, 0.0).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), block.shortcut(torch.relu(block.norm1(x))))
    same = networks.PreActBlock(4, 4, 1, nn.ReLU, 0.0).eval()
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)


def test_activation_by_name_and_shapes_by_kwargs() -> None:
    chosen = {"depth": 1, "widths": (8, 16, 32), "act_layer": "gelu", "block_drop_rate": 0.3}
    model = timm.create_model("wide_resnet28_10_cifar", **chosen)
    assert model.num_classes == 10 and model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert {type(m).__name__ for m in model.modules()} >= {"GELU", "Dropout"}
