"""The smooth swap: functions against independent formulas, what is replaced, what stays, and the trace."""

from __future__ import annotations

import math
import warnings

import pytest
import timm
import torch
from torch import nn

from timm_robust.errors import UserError
from timm_robust.models.activations import (
    ACTIVATIONS,
    ScaledActivation,
    SmoothBackwardReLU,
    SmoothReLU,
    activation_parameters,
    canonical_name,
    smooth_backward,
    swap_activations,
)
from timm_robust.models.nonsmooth import trace_nonsmooth
from timm_robust.models.resolution import on_meta


def made_on_meta(name: str) -> nn.Module:
    return on_meta(lambda: timm.create_model(name, num_classes=10))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def phi(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def smooth_relu(x: float, alpha: float = 400.0) -> float:
    return x - math.log(1 + alpha * x) / alpha if x > 0 else 0.0


FORMULAS = {
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) + x * sigmoid(x) * (1 - sigmoid(x))),
    "gelu": (lambda x: x * phi(x), lambda x: phi(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
    "softplus": (lambda x: math.log(1 + math.exp(x)), sigmoid),
    "psoftplus:10": (lambda x: math.log(1 + math.exp(10 * x)) / 10, lambda x: sigmoid(10 * x)),
    "psoftplus:3": (lambda x: math.log(1 + math.exp(3 * x)) / 3, lambda x: sigmoid(3 * x)),
    "elu": (lambda x: x if x > 0 else math.exp(x) - 1, lambda x: 1 if x > 0 else math.exp(x)),
    "celu:2": (lambda x: x if x > 0 else 2 * (math.exp(x / 2) - 1), lambda x: 1 if x > 0 else math.exp(x / 2)),
    "smoothrelu": (smooth_relu, lambda x: 400 * x / (1 + 400 * x) if x > 0 else 0.0),
    "relu-smooth-backward": (lambda x: max(x, 0.0), lambda x: sigmoid(10 * x)),
}


POINTS = [-3.0, -1.0, -0.3, -1e-3, 0.0, 1e-3, 0.3, 1.0, 1.9, 3.0]


def made(name: str) -> nn.Module:
    """The module that a swap puts in the place of a ReLU, in float64."""
    net = nn.Sequential(nn.ReLU())
    swap_activations(net, name)
    return net.double()[0]


def value_and_slope(act: nn.Module, points: list[float]) -> tuple[list[float], list[float]]:
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    y = act(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.tolist(), slope.tolist()


@pytest.mark.parametrize("name", FORMULAS)
def test_function_and_derivative(name: str) -> None:
    f, slope = FORMULAS[name]
    values, slopes = value_and_slope(made(name), POINTS)
    assert values == pytest.approx([f(x) for x in POINTS], abs=1e-12)
    assert slopes == pytest.approx([slope(x) for x in POINTS], abs=1e-12)


def test_numbers_of_the_paper() -> None:
    values, slopes = value_and_slope(made("silu"), [0.0, 1.0, -1.0])
    assert slopes == pytest.approx([0.5, 0.9277, 0.0723], abs=1e-4) and values[1] == pytest.approx(0.7311, abs=1e-4)
    values, slopes = value_and_slope(made("gelu_tanh"), [1.0])
    assert (values[0], slopes[0]) == pytest.approx((0.8412, 1.083), abs=1e-3)
    assert value_and_slope(made("psoftplus"), [0.0])[0][0] == pytest.approx(0.06931, abs=1e-5)
    values, slopes = value_and_slope(made("mish"), [0.0, 1.0])
    assert values == pytest.approx([0.0, math.tanh(math.log(1 + math.e))]) and slopes[0] == pytest.approx(0.6)


def test_smooth_relu_learns_alpha_and_survives_half_precision() -> None:
    act = SmoothReLU().double()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(act, (x[x != 0],)) and torch.autograd.gradgradcheck(act, (x[x != 0],))
    act(x).sum().backward()
    assert act.raw_alpha.grad is not None and act.raw_alpha.grad != 0
    y = SmoothReLU()(torch.tensor([1000.0, -1000.0], dtype=torch.float16))
    assert y.dtype == torch.float16 and y.tolist() == pytest.approx([1000.0, 0.0], abs=0.5)


def test_backward_only_variant_obeys_the_flag() -> None:
    act = SmoothBackwardReLU()
    points = [-0.2, 0.1, 0.5]
    smooth = [sigmoid(10 * x) for x in points]
    with smooth_backward(False):
        assert value_and_slope(act, points)[1] == [0.0, 1.0, 1.0]
        with smooth_backward(True):
            assert value_and_slope(act, points)[1] == pytest.approx(smooth)
        x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        plain = act(x).sum()  # what counts is the phase of the forward pass
    assert torch.autograd.grad(plain, x)[0].tolist() == [0.0, 1.0, 1.0]
    assert value_and_slope(act, points)[1] == pytest.approx(smooth)
    assert value_and_slope(act, points)[0] == [0.0, 0.1, 0.5]


def test_backward_only_variant_leaves_other_activations_alone() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Hardswish(), nn.ReLU6())
    report = swap_activations(net, "relu-smooth-backward")
    assert [type(m) for m in net] == [SmoothBackwardReLU, nn.Hardswish, nn.ReLU6]
    assert set(report.left) == {"1", "2"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (nn.ReLU(inplace=True), nn.SiLU),
        (nn.ReLU6(), nn.SiLU),
        (nn.LeakyReLU(0.1), nn.SiLU),
        (nn.PReLU(), nn.SiLU),
        (nn.RReLU(), nn.SiLU),
        (nn.Threshold(0.1, 0.0), nn.SiLU),
        (nn.SELU(), nn.SiLU),
        (nn.Hardtanh(), nn.Tanh),
        (nn.Hardswish(), nn.SiLU),
        (nn.Hardsigmoid(), nn.Sigmoid),
        (nn.ELU(alpha=2.0), nn.CELU),
        (timm.layers.activations.HardSigmoid(), nn.Sigmoid),
        (timm.layers.activations.HardSwish(), nn.SiLU),
        (timm.layers.activations.HardMish(), nn.Mish),
        (timm.layers.activations_me.HardSigmoidMe(), nn.Sigmoid),
        (timm.layers.activations_me.HardSwishMe(), nn.SiLU),
        (timm.layers.activations_me.HardMishMe(), nn.Mish),
        (timm.layers.activations.PReLU(), nn.SiLU),
    ],
)
def test_what_replaces_what(old: nn.Module, new: type[nn.Module]) -> None:
    net = nn.Sequential(old, nn.Flatten()).eval()
    report = swap_activations(net, "silu")
    assert type(net[0]) is new and not net[0].training
    assert report.replaced == {f"{type(old).__name__} -> {new.__name__}": 1}


@pytest.mark.parametrize("kept", [nn.GELU(), nn.SiLU(), nn.ELU(), nn.CELU(2.0), nn.Mish(), nn.Tanh(), nn.Sigmoid()])
def test_what_is_smooth_stays_and_the_user_hears_of_it(kept: nn.Module) -> None:
    net = nn.Sequential(kept)
    with pytest.warns(UserWarning, match="no effect"):
        assert not swap_activations(net, "silu").replaced
    assert net[0] is kept


def test_elu_becomes_celu_of_the_same_alpha() -> None:
    net = nn.Sequential(nn.ELU(alpha=2.0))
    swap_activations(net, "silu")
    assert net[0].alpha == 2.0


def test_shared_modules_stay_shared_and_lists_are_walked() -> None:
    act = nn.ReLU()
    net = nn.ModuleDict({"a": act, "b": nn.Sequential(act), "c": nn.ModuleList([nn.ReLU()])})
    report = swap_activations(net, "smoothrelu")
    assert net["a"] is net["b"][0] and net["a"] is not net["c"][0]
    assert report.replaced == {"ReLU -> SmoothReLU": 2}
    assert activation_parameters(net) == {id(net["a"].raw_alpha), id(net["c"][0].raw_alpha)}


def test_device_dtype_and_mode_are_those_of_the_model() -> None:
    net = nn.Sequential(nn.Linear(2, 2, dtype=torch.float64), nn.ReLU())
    net[1].eval()
    swap_activations(net, "smoothrelu")
    assert net[1].raw_alpha.dtype == torch.float64 and not net[1].training and net[0].training


def test_gates_stay_in_the_unit_interval() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=10)
    gates: list[torch.Tensor] = []
    swap_activations(model, "silu")
    found = [m for m in model.modules() if isinstance(m, nn.Sigmoid)]
    for gate in found:
        gate.register_forward_hook(lambda m, i, o: gates.append(o))
    model.eval()(torch.randn(2, 3, 64, 64) * 5)
    assert found and all(((g > 0) & (g < 1)).all() for g in gates)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "seresnet50",
        "resnetv2_50",
        "skresnet18",
        "mobilenetv3_small_050",
        "mobilenetv2_050",
        "densenet121",
        "regnety_002",
        "hardcorenas_a",
        "dpn48b",
        "dla46x_c",
        "ghostnet_050",
        "vgg11_bn",
        "rexnet_100",
        "nf_resnet26",
    ],
)
def test_trace_is_clean_after_the_swap(name: str) -> None:
    model = made_on_meta(name)
    images = torch.zeros(2, 3, 224, 224, device="meta")
    keys = list(model.state_dict())
    assert trace_nonsmooth(model, images).activation
    swap_activations(model, "silu")
    assert not trace_nonsmooth(model, images).activation
    assert list(model.state_dict()) == keys, "parameter-free activations must not change the state dict"


def test_trace_sees_what_no_swap_reaches() -> None:
    images = torch.zeros(2, 3, 256, 256, device="meta")
    assert trace_nonsmooth(made_on_meta("mobilevitv2_050"), images).activation["relu"] > 0
    model = made_on_meta("resnetv2_50d_frn")
    with pytest.warns(UserWarning, match="left on purpose"):
        report = swap_activations(model, "silu")
    assert report.left and all("max(x, tau)" in why for why in report.left.values())
    assert set(trace_nonsmooth(model, images).activation) == {"maximum"}


@pytest.mark.parametrize(("name", "kinked"), [("smoothrelu", False), ("celu:2", False), ("psoftplus", False)])
def test_trace_knows_the_smooth_forms(name: str, kinked: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    swap_activations(net, name)
    trace = trace_nonsmooth(net, torch.rand(1, 3, 8, 8))
    assert bool(trace.activation) == kinked and sum(trace.allowed.values()) == 1
    hard = nn.Sequential(nn.ELU(alpha=2.0), nn.Hardtanh(), nn.RReLU(), nn.PReLU())
    assert len(trace_nonsmooth(hard, torch.rand(1, 3, 8, 8)).activation) == 4


def test_trace_leaves_statistics_alone() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    trace_nonsmooth(net, torch.rand(4, 3, 8, 8))
    assert net[0].num_batches_tracked == 0


def test_functions_that_need_their_relu_keep_it() -> None:
    for name, child in (("poolformerv2_s12", "act.relu"), ("efficientvit_b0", "kernel_func")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = made_on_meta(name)
            report = swap_activations(model, "silu")
        assert report.left and all(path.endswith(child) for path in report.left)


def test_normaliser_free_networks_get_the_new_gain() -> None:
    model = timm.create_model("nf_resnet26", num_classes=10)
    before = model.stages[0][0].conv1.scale
    report = swap_activations(model, "silu")
    ratio = model.stages[0][0].conv1.scale / before
    assert report.rescaled > 20 and ratio == pytest.approx(1.7881293296813965 / 1.7139588594436646, rel=1e-3)
    mixed = made_on_meta("nf_regnet_b0")  # SiLU trunk, ReLU in the squeezes only
    assert swap_activations(mixed, "silu").rescaled == 0


def test_gamma_act_of_a_relu_takes_function_and_constant() -> None:
    from timm.models.nfnet import GammaAct

    net = nn.Sequential(GammaAct("relu", gamma=1.7139588594436646), GammaAct("gelu", gamma=1.70))
    swap_activations(net, "silu")
    assert isinstance(net[0], ScaledActivation) and net[0].gamma == pytest.approx(1.7881, abs=1e-3)
    assert isinstance(net[1], GammaAct)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sillu", "did you mean silu"),
        ("psoftplus:x", "a number above 0"),
        ("psoftplus:-1", "above 0"),
        ("silu:2", "without a parameter"),
        ("", "expected one of"),
    ],
)
def test_wrong_names_are_one_clear_sentence(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        swap_activations(nn.Sequential(nn.ReLU()), name)


def test_canonical_names_are_accepted_again() -> None:
    for name in ACTIVATIONS:
        assert canonical_name(canonical_name(name)) == canonical_name(name)
    assert canonical_name("psoftplus") == "psoftplus:10"
