"""Networks of the adversarial-training literature for 32x32 images, registered with timm.

PreAct ResNet-18 (He et al., 2016), ResNet-18 with a 3x3 stem, and WideResNet-28-10 and -34-10 (Zagoruyko and Komodakis,
2016), each with ReLU and, under the suffix `_silu`, with SiLU. Total stride 8 (ResNets) or 4 (WideResNets).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import create_classifier, get_act_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # CIFAR-10


class PreActBlock(nn.Module):
    """Pre-activation residual block; a projection shortcut starts from the first activation."""

    def __init__(self, width_in: int, width: int, stride: int, act_layer: type[nn.Module], drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.act1 = act_layer()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = act_layer()
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        reshapes = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if reshapes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.act1(self.norm1(x))
        short = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.drop(self.act2(self.norm2(self.conv1(active))))) + short


class PreActNet(nn.Module):
    """Pre-activation residual network for small images: PreAct ResNet and WideResNet differ in widths and depths only.

    Args:
        stem_width: channels of the 3x3 stem.
        widths: channels of each stage; every stage but the first halves the resolution.
        depth: blocks per stage.
        drop_rate: dropout before the classifier.
        block_drop_rate: dropout between the convolutions of a block (WideResNet's).
    """

    def __init__(
        self,
        stem_width: int,
        widths: Sequence[int],
        depth: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        act_layer: str | type[nn.Module] = nn.ReLU,
        drop_rate: float = 0.0,
        block_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        act = get_act_layer(act_layer)
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.num_features = self.head_hidden_size = widths[-1]
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, 1, 1, bias=False)
        stages: list[nn.Module] = []
        self.feature_info: list[dict[str, Any]] = []
        width_in = stem_width
        for index, width in enumerate(widths):
            first = PreActBlock(width_in, width, 1 if index == 0 else 2, act, block_drop_rate)
            rest = [PreActBlock(width, width, 1, act, block_drop_rate) for _ in range(depth - 1)]
            stages.append(nn.Sequential(first, *rest))
            self.feature_info.append({"num_chs": width, "reduction": 2**index, "module": f"stages.{index}"})
            width_in = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width_in)
        self.act = act()
        self.global_pool, self.fc = create_classifier(width_in, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        like = self.conv1.weight
        self.fc.to(device=like.device, dtype=like.dtype)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.stages(self.conv1(x))))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = nn.functional.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class CifarResNet(ResNet):
    """timm's ResNet with a 3x3 stem of stride 1 and no pooling."""

    def __init__(self, *args: Any, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, in_chans=in_chans, zero_init_last=False, **kwargs)
        self.conv1 = nn.Conv2d(in_chans, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for info in self.feature_info:
            info["reduction"] = max(info["reduction"] // 4, 1)


_NAMES = ("preact_resnet18_cifar", "resnet18_cifar", "wide_resnet28_10_cifar", "wide_resnet34_10_cifar")

default_cfgs = generate_default_cfgs(
    {
        f"{name}{suffix}": {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4) if "resnet18" in name else (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": MEAN,
            "std": STD,
            "first_conv": "conv1",
            "classifier": "fc",
        }
        for name in _NAMES
        for suffix in ("", "_silu")
    }
)


def _preact(variant: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> nn.Module:
    return build_model_with_cfg(PreActNet, variant, pretrained, **{**defaults, **kwargs})


def _wide(variant: str, pretrained: bool, kwargs: dict[str, Any], depth: int, **defaults: Any) -> nn.Module:
    shape = {"stem_width": 16, "widths": (160, 320, 640), "depth": (depth - 4) // 6}
    return _preact(variant, pretrained, kwargs, **shape, **defaults)


def _resnet18(variant: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> nn.Module:
    shape = {"block": BasicBlock, "layers": (2, 2, 2, 2)}
    return build_model_with_cfg(CifarResNet, variant, pretrained, **{**shape, **defaults, **kwargs})


_PREACT18 = {"stem_width": 64, "widths": (64, 128, 256, 512), "depth": 2}


@register_model
def preact_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pre-activation ResNet-18, 11.17 M parameters."""
    return _preact("preact_resnet18_cifar", pretrained, kwargs, **_PREACT18)


@register_model
def preact_resnet18_cifar_silu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pre-activation ResNet-18 with SiLU."""
    return _preact("preact_resnet18_cifar_silu", pretrained, kwargs, **_PREACT18, act_layer=nn.SiLU)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a 3x3 stem, 11.17 M parameters."""
    return _resnet18("resnet18_cifar", pretrained, kwargs)


@register_model
def resnet18_cifar_silu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a 3x3 stem and SiLU."""
    return _resnet18("resnet18_cifar_silu", pretrained, kwargs, act_layer=nn.SiLU)


@register_model
def wide_resnet28_10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideResNet-28-10, 36.48 M parameters."""
    return _wide("wide_resnet28_10_cifar", pretrained, kwargs, 28)


@register_model
def wide_resnet28_10_cifar_silu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideResNet-28-10 with SiLU."""
    return _wide("wide_resnet28_10_cifar_silu", pretrained, kwargs, 28, act_layer=nn.SiLU)


@register_model
def wide_resnet34_10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideResNet-34-10, 46.16 M parameters."""
    return _wide("wide_resnet34_10_cifar", pretrained, kwargs, 34)


@register_model
def wide_resnet34_10_cifar_silu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideResNet-34-10 with SiLU."""
    return _wide("wide_resnet34_10_cifar_silu", pretrained, kwargs, 34, act_layer=nn.SiLU)
