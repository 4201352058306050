"""The crafting copy of a network: folded BatchNorm, memory formats and precisions."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import nn

from timm_robust.evaluation.fast import run_fast
from timm_robust.evaluation.fast.network import Network
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.models.stem import CentreConv2d
from timm_robust.threat import Threat

LINF, L2 = Threat("Linf", 1 / 32, "1/32"), Threat("L2", 0.25, "0.25")


# the crafting copy


def test_batch_norm_folds_and_the_model_is_left_alone(small_model):
    small_model.eval()
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        for module in small_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2), module.bias.uniform_(-1, 1)
        before, wanted = copy.deepcopy(small_model.state_dict()), small_model(images)
        made = Network(small_model, images)
        torch.testing.assert_close(made.logits(images), wanted, rtol=1e-4, atol=1e-4)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in small_model.modules())
    assert made.folded == norms and not any(isinstance(m, nn.BatchNorm2d) for m in made.module.modules())
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())
    assert all(parameter.requires_grad for parameter in small_model.parameters())


def test_passes_without_gradients_run_frozen_on_a_cpu(small_model):
    model = small_model.eval()
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = Network(model, images[:8])
    assert net.frozen is not None
    for n in (1, 5, 9):
        with torch.no_grad():
            assert torch.allclose(net.logits(net.layout(images[:n])), model(images[:n]), atol=1e-4)

    class Branches(nn.Module):  # a trace would take one branch for all images
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) * (2 if len(x) > 1 else 1)

    branches = Branches().eval()
    net = Network(branches, images[:8])
    assert net.frozen is None
    with torch.no_grad():
        assert torch.allclose(net.logits(net.layout(images[:1])), branches(images[:1]), atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "regnetx_002", "vit_tiny_patch16_224", "densenet121"])
def test_other_families_fold_or_stay(name):
    kwargs = {"img_size": 32, "patch_size": 8} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    images = torch.rand(2, 3, 32, 32)
    made = Network(model, images)
    with torch.no_grad():
        wanted = model(images)
        assert (made.logits(images) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (made.folded > 10) == (not name.startswith("vit"))


@pytest.mark.parametrize("derived, folded", [(CentreConv2d, 2), (StdConv2d, 1)])
def test_convolutions_that_are_derived_fold_where_that_is_the_same(derived, folded):
    """Ours uses the centre of its weight, and folds; timm's standardises its weight, which undoes a scale in it."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.first = derived(3, 4, 5), nn.BatchNorm2d(4)
            self.two, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            for norm in (self.first, self.second):
                norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)

        def forward(self, x):
            return self.second(self.two(self.first(self.one(x)).relu())).mean((2, 3))

    model, images = Two().eval(), torch.rand(2, 3, 8, 8)
    made = Network(model, images)
    assert made.folded == folded
    with torch.no_grad():
        torch.testing.assert_close(made(made.layout(images)), model(images), rtol=1e-4, atol=1e-4)


def test_a_convolution_that_runs_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x))).mean((2, 3))

    assert Network(Twice().eval(), torch.rand(2, 3, 4, 4)).folded == 0


# verdicts


class Views(nn.Module):
    """Flattens a feature map with `view`, which channels_last does not allow."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, 10)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(len(x), -1))


def test_a_model_that_views_its_feature_maps(digits, short):
    torch.manual_seed(0)
    model = Views().eval()
    images = digits[0][:8].float()
    with torch.no_grad():
        targets = model(images).argmax(1)
    assert Network(model, images).memory_format is torch.contiguous_format
    for threat in (LINF, L2):
        result = run_fast(EvalInputs(model, images, targets, threat), "plus")
        assert result.broken_by.min() >= -1 and len(result.after) == 6


def test_others_run_in_channels_last(net, digits):
    assert Network(net, digits[0][:8]).memory_format is torch.channels_last


class Half(nn.Module):
    """Weights in half precision, logits in float32."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 10).to(torch.bfloat16)

    def forward(self, x):
        return self.head(x.flatten(1).to(torch.bfloat16)).float()


def test_images_keep_float32_whatever_the_weights_have(digits, short):
    model, images = Half().eval(), digits[0][:4].float()
    assert Network(model, images).layout(images).dtype == torch.float32
    run_fast(EvalInputs(model, images, digits[1][:4], LINF))
