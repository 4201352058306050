"""The small-image stem: resolution kept, weights as timm's, replay exact, and clear words where it cannot be."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from timm_robust.errors import UserError
from timm_robust.models.factory import build_model, rebuild
from timm_robust.models.pixel_model import PixelModel
from timm_robust.models.resolution import on_meta, trace_levels
from timm_robust.models.stem import CentreConv2d, apply_stem
from timm_robust.models.stem_plan import make_plan, patch_for_tokens, target_stride


def build(name: str, size: int, **kwargs: object) -> PixelModel:
    return build_model(name, num_classes=10, image_size=size, data_mean=[0.5], data_std=[0.25], **kwargs)  # type: ignore[arg-type]


def test_target_stride() -> None:
    assert {s: target_stride(s) for s in (4, 8, 16, 28, 32, 48, 64)} == {
        4: 4,
        8: 8,
        16: 8,
        28: 8,
        32: 8,
        48: 8,
        64: 16,
    }
    assert {s: patch_for_tokens(s) for s in (8, 16, 28, 32, 64)} == {8: 2, 16: 2, 28: 4, 32: 4, 64: 8}


CASES = [
    ("resnet18", 8, (1, 1)),
    ("resnet18", 28, (4, 4)),
    ("resnet18", 32, (4, 4)),
    ("resnet18", 64, (4, 4)),
    ("resnext26ts", 32, (4, 4)),
    ("seresnet18", 32, (4, 4)),
    ("resnetv2_18", 16, (2, 2)),
    ("resnetblur18", 32, (4, 4)),
    ("regnety_002", 32, (4, 4)),
    ("efficientnet_b0", 32, (4, 4)),
    ("tf_efficientnet_lite0", 16, (2, 2)),
    ("mobilenetv3_small_050", 8, (1, 1)),
    ("densenet121", 32, (4, 4)),
    ("convnext_atto", 32, (4, 4)),
    ("convnext_atto", 8, (1, 1)),
    ("coatnet_pico_rw_224", 32, (4, 4)),
    ("hrnet_w18_small", 32, (4, 4)),
]


TOKENS = [
    ("vit_tiny_patch16_224", 32, 65),
    ("vit_tiny_patch16_224", 8, 17),
    ("vit_tiny_patch16_224", 64, 65),
    ("deit_tiny_patch16_224", 28, 50),
    ("levit_128s", 32, 16),
]


@pytest.mark.parametrize(("name", "size", "expected"), CASES)
def test_convolutional_maps_and_replay(name: str, size: int, expected: tuple[int, int]) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    model = build(name, size).eval()
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert model.model.forward_features(images).shape[-2:] == expected
    check_rebuilt(model, images)


@pytest.mark.parametrize(("name", "size", "tokens"), TOKENS)
def test_tokens_and_replay(name: str, size: int, tokens: int) -> None:
    model = build(name, size).eval()
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert model.model.forward_features(images).shape[1] == tokens
    check_rebuilt(model, images)


def test_swin() -> None:
    model = build("swin_tiny_patch4_window7_224", 32).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert model.model.forward_features(images).shape[1:3] == (4, 4)
    check_rebuilt(model, images)


def check_rebuilt(model: PixelModel, images: torch.Tensor) -> None:
    """Inner weights load strictly into the bare timm model, and a rebuilt one computes the same."""
    record = model.config
    bare = on_meta(lambda: timm.create_model(record.architecture, num_classes=10, **record.model_kwargs))
    bare.load_state_dict(model.model.state_dict(), strict=True, assign=True)
    again = rebuild(record).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnetv2_50", "seresnet50", "resnet50d", "tresnet_m"])
def test_plans_of_larger_networks_on_the_meta_device(name: str) -> None:
    def create(**kwargs: object) -> nn.Module:
        return timm.create_model(name, num_classes=10, **kwargs)

    plan = make_plan(create, name, image_size=32, in_chans=3, small=True, taken=())
    model = on_meta(create).eval()
    with torch.device("meta"):
        keys = {key: value.shape for key, value in model.state_dict().items()}
        apply_stem(model, plan.surgery)
        assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape[-2:] == (4, 4)
    assert plan.kwargs == {} and plan.surgery["total_stride"] == 8
    assert {key: value.shape for key, value in model.state_dict().items()} == keys


def test_levels_group_parallel_branches() -> None:
    levels = trace_levels(timm.create_model("resnet18d").eval(), 64, 3)
    assert [(level.stride_in, level.factor) for level in levels] == [(1, 2), (2, 2), (4, 2), (8, 2), (16, 2)]
    assert set(levels[2].modules) == {"layer2.0.conv1", "layer2.0.downsample.0"}


def test_networks_that_fit_are_left_alone() -> None:
    assert build("resnet18", 96).config.stem == {}
    assert build("resnet18", 32, stem="none").config.stem == {}
    assert build("preact_resnet18_cifar", 32).config.stem == {}


def test_image_size_of_a_transformer_without_stem() -> None:
    record = build("vit_tiny_patch16_224", 96).config
    assert record.model_kwargs == {"img_size": 96} and record.stem == {}


def test_the_users_patch_size_is_kept() -> None:
    record = build("vit_tiny_patch16_224", 32, model_kwargs={"patch_size": 8, "depth": 2}).config
    assert record.model_kwargs == {"patch_size": 8, "depth": 2, "img_size": 32}


def test_one_clear_sentence_where_no_surgery_helps() -> None:
    with pytest.raises(
        UserError, match=r"'efficientformer_l1' cannot be fitted to 32-pixel images .* --image-size 224"
    ):
        build("efficientformer_l1", 32)


def test_a_coarse_last_map_is_said() -> None:
    with pytest.warns(UserWarning, match="2x2 positions of a 32-pixel image"):
        build("gmlp_ti16_224", 32)


def test_a_wide_stem_kernel_is_its_centre() -> None:
    torch.manual_seed(0)
    model = build("resnet18", 32)
    stem = model.model.conv1
    assert isinstance(stem, CentreConv2d) and stem.weight.shape == (64, 3, 7, 7)
    plain = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(stem.weight[:, :, 2:5, 2:5])
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(stem(images), plain(images))
    stem(images).square().sum().backward()
    outside = torch.ones(7, 7, dtype=torch.bool)
    outside[2:5, 2:5] = False
    assert not stem.weight.grad[:, :, outside].any() and stem.weight.grad[:, :, ~outside].any()
    assert not stem.weight[:, :, outside].any()
    spread = nn.init.kaiming_normal_(torch.empty(64, 3, 3, 3), mode="fan_out").std().item()
    assert stem.weight[:, :, ~outside].std().item() == pytest.approx(spread, rel=0.15)


def test_pretrained_kernels_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm_robust.models import timm_network

    monkeypatch.setattr(timm_network, "_has_weights", lambda name: True)
    create = timm_network.create
    monkeypatch.setattr(timm_network, "create", lambda *a, pretrained=False, **k: create(*a, **k))
    assert type(build("resnet18", 32, pretrained=True).model.conv1) is nn.Conv2d
