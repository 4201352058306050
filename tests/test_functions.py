"""Pure functions, attacks, schedules and settings against formulas written independently, in float64 or by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm_robust_plugins.sat.sat import CoinStartPGD
from timm_robust_plugins.trades.trades import trades_loss
from torch import nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.defense import Defense
from timm_robust.errors import UserError
from timm_robust.models.factory import build_model
from timm_robust.plugin import get_manager
from timm_robust.recipes.presets import PRESETS, make_recipe
from timm_robust.recipes.recipe import Recipe
from timm_robust.testing import Bench
from timm_robust.threat import make_threat
from timm_robust.training.optim import Schedule, build_optimizer

from .conftest import SMALL

EPS = 8 / 255
THREAT = make_threat(image_size=8)


# losses


def fixed_logits(seed: int) -> np.ndarray:
    """8 x 10 logits of a usual size, with one image that is nearly certain."""
    logits = 3 * np.random.default_rng(seed).standard_normal((8, 10))
    logits[0, 3] = 30.0
    return logits


TARGETS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(logits: np.ndarray, soft_labels: np.ndarray) -> float:
    return float(-(soft_labels * log_softmax(logits)).sum(axis=1).mean())


def trades(clean: np.ndarray, adversarial: np.ndarray, beta: float) -> float:
    """The objective of section 4 with KL(p(x) || p(x')), from its definition."""
    p, q = np.exp(log_softmax(clean)), np.exp(log_softmax(adversarial))
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    return cross_entropy(clean, np.eye(10)[TARGETS]) + beta * float(divergence)


def ours(clean: torch.Tensor, adversarial: torch.Tensor, beta: float) -> torch.Tensor:
    loss = nn.functional.cross_entropy(clean, torch.from_numpy(TARGETS))
    return trades_loss(loss, clean, adversarial, beta=beta)


@pytest.mark.parametrize("beta", [0.5, 1.0, 6.0])
def test_trades_loss(beta):
    clean, adversarial = fixed_logits(0), fixed_logits(1)
    expected = trades(clean, adversarial, beta)
    exact = ours(torch.from_numpy(clean), torch.from_numpy(adversarial), beta).item()
    single = ours(torch.from_numpy(clean).float(), torch.from_numpy(adversarial).float(), beta).item()
    assert exact == pytest.approx(expected, rel=1e-12)
    assert single == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(trades(adversarial, clean, beta), rel=1e-2), "the direction of KL matters here"


def test_trades_loss_is_the_clean_loss_without_a_difference_or_a_weight():
    clean, adversarial = torch.from_numpy(fixed_logits(0)), torch.from_numpy(fixed_logits(1))
    clean_loss = nn.functional.cross_entropy(clean, torch.from_numpy(TARGETS)).item()
    assert ours(clean, clean.clone(), 6.0).item() == pytest.approx(clean_loss, rel=1e-12)
    assert ours(clean, adversarial, 0.0).item() == clean_loss


def test_trades_gradient_flows_through_both_predictions():
    """Against differences of the float64 formula: the released code does not detach the clean prediction."""
    clean, adversarial = (torch.from_numpy(fixed_logits(seed)).requires_grad_() for seed in (0, 1))
    ours(clean, adversarial, 6.0).backward()
    for number, tensor in enumerate((clean, adversarial)):
        values = [fixed_logits(0), fixed_logits(1)]
        for place in ((1, 2), (5, 9)):
            ends = []
            for shift in (1e-5, -1e-5):
                values[number][place] += shift
                ends.append(trades(*values, beta=6.0))
                values[number][place] -= shift
            assert tensor.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def smoothed_defense(smoothing: float) -> Defense:
    defense = Defense(options=None)
    defense.run = SimpleNamespace(recipe=make_recipe("default", {}, {"label_smoothing": smoothing}))
    return defense


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_spreads_its_mass_over_the_other_classes(smoothing):
    logits = fixed_logits(2)
    labels = np.full((8, 10), smoothing / 9)
    labels[np.arange(8), TARGETS] = 1 - smoothing
    loss = smoothed_defense(smoothing).cross_entropy(torch.from_numpy(logits), torch.from_numpy(TARGETS))
    assert loss.item() == pytest.approx(cross_entropy(logits, labels), rel=1e-12)


def test_soft_labels_are_not_smoothed_again():
    logits, labels = fixed_logits(2), np.exp(log_softmax(fixed_logits(3)))
    loss = smoothed_defense(0.1).cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(cross_entropy(logits, labels), rel=1e-12)


# attacks, on a network whose gradient is known


def linear(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Two classes, and the sign of the cross-entropy's gradient for label 0: that of w1 - w0, at every image."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    weight = model[1].weight.detach()
    return model, (weight[1] - weight[0]).sign().view(1, 3, 8, 8)


@pytest.fixture
def images() -> torch.Tensor:
    """Some at the ends of the pixel range."""
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).mul(1.2).sub(0.1).clamp(0, 1)


LABELS = torch.zeros(6, dtype=torch.long)


def inside(adversarial: torch.Tensor, images: torch.Tensor) -> bool:
    near = (adversarial - images).abs().max() <= EPS + 1e-6
    return bool(near and adversarial.min() >= 0 and adversarial.max() <= 1)


def test_fgsm_rs(images):
    """Wong et al., algorithm 3: uniform start, one step of 1.25 eps, back into the ball and into [0, 1]."""
    model, sign = linear()
    bench = Bench.make("fgsm-rs")
    bench.defense.run = SimpleNamespace(threat=THREAT, attacker=Attacker(model, THREAT))
    torch.manual_seed(7)
    found = bench.defense.perturb(SimpleNamespace(images=images, targets=LABELS)).images

    torch.manual_seed(7)
    start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    delta = (start + 1.25 * EPS * sign - images).clamp(-EPS, EPS)
    expected = (images + delta).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-7)
    assert inside(found, images)
    middle = (images > EPS) & (images < 1 - EPS)
    short = (found - images).abs()[middle] < EPS - 1e-6
    # from three eighths of the starts, those below -eps / 4, the step does not reach the edge
    assert short.float().mean().item() == pytest.approx(3 / 8, abs=0.05)


@pytest.mark.parametrize(
    ("alpha", "steps"), [(EPS, 1), (0.1 * EPS, 1), (1.5 * EPS, 1), (0.1 * EPS, 4), (0.5 * EPS, 2), (EPS, 3)]
)
def test_sat_from_the_clean_image_is_fgsm(images, alpha, steps):
    """On a linear network every step goes the same way, so steps x max(alpha, eps / steps), cut at eps, is FGSM."""
    model, sign = linear()
    found = Attacker(model, THREAT)(images, LABELS, CoinStartPGD, alpha=alpha, steps=steps, clean_start=1.0)
    assert torch.allclose(found, (images + EPS * sign).clamp(0, 1), atol=1e-6)


def flat() -> nn.Module:
    """A network of zero gradient: the attack ends where it starts."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    nn.init.zeros_(model[1].weight)
    return model


def test_sat_starts_in_the_ball():
    images = torch.full((6, 3, 8, 8), 0.5)
    attacker = Attacker(flat(), THREAT)
    torch.manual_seed(0)
    found = attacker(images, LABELS, CoinStartPGD, alpha=EPS, steps=1, clean_start=0.0)
    length = (found - images).abs()
    assert inside(found, images) and length.max() > 0.99 * EPS
    assert length.mean().item() == pytest.approx(EPS / 2, rel=0.05), "uniform"


def test_sat_tosses_one_coin_per_batch():
    images = torch.full((2, 3, 8, 8), 0.5)
    attacker = Attacker(flat(), THREAT)
    torch.manual_seed(0)
    settings = {"alpha": EPS, "steps": 1, "clean_start": 0.2}
    moved = [(attacker(images, LABELS[:2], CoinStartPGD, **settings) != images).float().mean() for _ in range(400)]
    assert all(m == 0 or m > 0.9 for m in moved), "the whole batch or none of it"
    assert sum(m == 0 for m in moved) / 400 == pytest.approx(0.2, abs=0.06)  # three standard deviations


@pytest.mark.parametrize("clean_start", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_sat_never_leaves_the_ball(small_model, images, clean_start, steps):
    raw = CoinStartPGD(Attacker(small_model.eval(), THREAT).view, EPS, 2 * EPS, steps, clean_start)
    torch.manual_seed(0)
    assert inside(raw(images, torch.arange(6)).detach(), images)  # without the guard's help


def test_pgd_defaults_are_ten_steps_of_two(images):
    bench = Bench.make("pgd")
    assert bench.run.threat.eps_text == "8/255"
    settings = bench.defense.pgd_settings()
    assert settings == {"steps": 10, "alpha": pytest.approx(2 / 255), "random_start": True, "bn": "train"}
    calls = []
    handle = bench.model.register_forward_pre_hook(lambda module, inputs: calls.append(module.training))
    bench.defense.perturb(bench.batch)
    handle.remove()
    assert calls == [True] * 10


def test_pgd_against_a_loop_by_hand(images):
    """A curved network, so that the order of step, ball and pixel range matters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 10)).double().eval()
    images, targets = images.double(), torch.arange(6)
    torch.manual_seed(3)
    found = Attacker(model, THREAT)(images, targets, "pgd", steps=4, alpha=EPS / 4)
    # the guard's view returns float32 logits: so does this loop
    torch.manual_seed(3)
    current = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(4):
        current.requires_grad_()
        nn.functional.cross_entropy(model(current).float(), targets).backward()
        current = current.detach() + EPS / 4 * current.grad.sign()
        current = torch.maximum(torch.minimum(current, images + EPS), images - EPS).clamp(0, 1)
    assert torch.allclose(found, current, atol=1e-9)


# schedules


STEPS = 5
"""Optimizer steps per epoch."""


def curve(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Learning rate and momentum that each optimizer step of a run meets."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr, momentum=recipe.momentum)
    schedule = Schedule(optimizer, recipe, STEPS)
    rates, momenta = [], []
    for _ in range(recipe.epochs * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    return np.array(rates), np.array(momenta)


def half_cosine(start: float, end: float, share: np.ndarray) -> np.ndarray:
    return end + (start - end) * (1 + np.cos(np.pi * share)) / 2


@pytest.mark.parametrize("peak", [0.3, 0.5])
def test_onecycle(peak):
    """lr / 25 -> lr -> lr / 250,000 by half cosines, momentum the other way, the top at `peak` of the run."""
    rates, momenta = curve(make_recipe("default", {}, {"epochs": 20, "lr": 0.2, "peak": peak}))
    t, top, last = np.arange(100), peak * 100 - 1, 99
    up, down = t / top, (t - top) / (last - top)
    expected = np.where(t <= top, half_cosine(0.008, 0.2, up), half_cosine(0.2, 0.2 / 25e4, down))
    assert np.allclose(rates, expected, rtol=1e-9, atol=1e-12)
    assert np.allclose(momenta, np.where(t <= top, half_cosine(0.95, 0.85, up), half_cosine(0.85, 0.95, down)))
    assert rates.argmax() == top


def test_onecycle_can_leave_momentum_alone():
    _, momenta = curve(make_recipe("default", {}, {"epochs": 4, "cycle_momentum": False, "momentum": 0.8}))
    assert (momenta == 0.8).all()


@pytest.mark.parametrize("peak", [0.3, 0.5])
def test_cyclic_is_a_triangle(peak):
    rates, momenta = curve(make_recipe("default", {}, {"epochs": 20, "lr": 0.2, "schedule": "cyclic", "peak": peak}))
    expected = np.interp(np.arange(100), [0, 100 * peak, 100], [0, 0.2, 0])
    assert np.allclose(rates, expected, atol=1e-12)
    assert rates[0] == 0 and rates.argmax() == 100 * peak and rates[-1] == pytest.approx(0.2 / (100 - 100 * peak))
    assert (momenta == 0.9).all()


def test_multistep():
    rates, _ = curve(make_recipe("rice", {}, {"epochs": 20}))
    expected = np.repeat([0.1, 0.01, 0.001], [50, 25, 25])
    # timm compares its milestones with t + 1, so each fall comes one step of one epoch early
    settled = ~np.isin(np.arange(100), [49, 74])
    assert np.allclose(rates[settled], expected[settled], rtol=1e-12)
    assert (np.diff(rates) <= 0).all()


def test_step_falls_at_every_multiple_of_the_first_milestone():
    rates, _ = curve(make_recipe("default", {}, {"epochs": 20, "lr": 0.1, "schedule": "step", "milestones": "0.3"}))
    assert np.allclose(rates, 0.1 * 0.1 ** (np.arange(100) // 30), rtol=1e-12)


@pytest.mark.parametrize("warmup", [0, 2, 5])
def test_cosine_after_a_linear_warm_up(warmup):
    rates, _ = curve(
        make_recipe("default", {}, {"epochs": 20, "lr": 0.1, "schedule": "cosine", "warmup_epochs": warmup})
    )
    t, w = np.arange(100), warmup * STEPS
    expected = np.where(t < w, 0.1 * t / max(w, 1), half_cosine(0.1, 0.0, (t - w) / (100 - w)))
    assert np.allclose(rates, expected, atol=1e-12)


def test_multistep_keeps_its_epochs_with_a_warm_up():
    rates, _ = curve(make_recipe("imagenet", {}, {"epochs": 20, "warmup_epochs": 2}))
    t = np.arange(100)
    expected = np.select([t < 10, t < 30, t < 60, t < 90], [0.01 * t, 0.1, 0.01, 0.001], 0.0001)
    settled = ~np.isin(t, [29, 59, 89])
    assert np.allclose(rates[settled], expected[settled], rtol=1e-9)


def test_constant():
    assert (curve(make_recipe("default", {}, {"epochs": 2, "schedule": "constant"}))[0] == 0.2).all()


def piecewise(points: str, epochs: int = 20, lr: float = 0.3) -> Recipe:
    return make_recipe("default", {}, {"epochs": epochs, "lr": lr, "schedule": "piecewise", "points": points})


def test_piecewise():
    """Straight between the points; the first step has the first factor and the last step the last."""
    rates, momenta = curve(piecewise("0:0,0.4:1,1:0"))
    share = np.arange(100) / 99
    assert np.allclose(rates, 0.3 * np.where(share < 0.4, share / 0.4, (1 - share) / 0.6), atol=1e-12)
    assert rates[0] == rates[-1] == 0 and (momenta == 0.9).all()
    rates, _ = curve(piecewise(" 0:2 , 1:0.5"))
    assert np.allclose(rates, 0.3 * (2 - 1.5 * share), rtol=1e-12)


def test_piecewise_jumps_where_a_share_comes_twice():
    rates, _ = curve(piecewise("0:1,0.5:1,0.5:0.1,1:0.1"))
    assert np.allclose(rates, np.repeat([0.3, 0.03], 50), rtol=1e-12)
    third, share = 33 / 99, np.arange(100) / 99
    rates, _ = curve(piecewise(f"0:0,0.1:1,{third}:0.1,{third}:0.05,1:0"))
    assert rates[32] > 0.03 > 0.3 * 0.05 == rates[33], "at the jump itself the later factor"
    late = share >= third
    assert np.allclose(rates[late], 0.3 * 0.05 * (1 - share[late]) / (1 - third), atol=1e-12)


def test_piecewise_of_a_single_step_and_beyond_the_end():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = Schedule(optimizer, piecewise("0:0.5,1:0.25", epochs=1), 1)
    assert optimizer.param_groups[0]["lr"] == 0.15
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.075


@pytest.mark.parametrize("schedule", ["piecewise", "constant", "cyclic", "onecycle", "cosine"])
def test_schedule_resumes(schedule):
    recipe = make_recipe("default", {}, {"epochs": 4, "schedule": schedule})
    expected, _ = curve(recipe)
    made = []
    for _ in range(2):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr, momentum=0.9)
        made.append((optimizer, Schedule(optimizer, recipe, STEPS)))
    (one, running), (other, resumed) = made
    for _ in range(7):
        one.step()
        running.step()
    other.load_state_dict(one.state_dict())
    resumed.load_state_dict(running.state_dict())
    rates = []
    for _ in range(7, 20):
        rates.append(other.param_groups[0]["lr"])
        other.step()
        resumed.step()
    assert np.allclose(rates, expected[7:], rtol=1e-12)


@pytest.mark.parametrize(
    "points",
    [
        "",
        "0.5",
        "0:1",
        "0:0,0.4:1",
        "0.1:0,1:0",
        "0:0,0.6:1,0.4:1,1:0",
        "0:0,0.5:-1,1:0",
        "0:0,1:0,1.5:1",
        "0:0,half:1,1:0",
        "0:0;0.4:1;1:0",
        "0:0:1,1:0",
        "0:nan,1:0",
        "0:0,nan:1,1:0",
        "0:inf,1:0",
    ],
)
def test_piecewise_points_are_checked(points):
    with pytest.raises(UserError, match=r"'points' is '.*': expected share:factor pairs such as 0:0,0.4:1,1:0"):
        curve(piecewise(points))


# recipes


def test_later_settings_win():
    """Defaults < preset < what the method recommends < the user."""
    recipe = make_recipe("rice", {"epochs": 50, "lr": 0.3, "weight_decay": 1e-3}, {"lr": "0.05", "ema": 0.99})
    assert recipe.lr == 0.05, "the user's, over the method's and the preset's, as a number"
    assert recipe.epochs == 50 and recipe.weight_decay == 1e-3, "the method's, over the preset's and the default"
    assert recipe.schedule == "multistep" and recipe.pad_mode == "reflect", "the preset's, over the default"
    assert recipe.batch_size == 128 and recipe.momentum == 0.9, "the defaults"
    assert recipe.ema == 0.99, "the user's, over the default"


def test_every_preset_and_every_recommendation_is_a_recipe():
    for preset in PRESETS:
        for provided in get_manager().defenses().values():
            recommends = {k: v for k, v in provided.spec.recommends.items() if k != "activation"}
            assert make_recipe(preset, recommends, {}).epochs >= 1


@pytest.mark.parametrize("source", [({"epoch": 3}, {}), ({}, {"epoch": 3})], ids=["method", "user"])
def test_unknown_setting(source):
    with pytest.raises(UserError, match="unknown recipe setting 'epoch': did you mean epochs"):
        make_recipe("default", *source)


@pytest.mark.parametrize(
    ("decay_norm_bias", "rests"), [(True, ("alpha",)), (False, ("alpha", "bias", "norm"))], ids=["all", "weights-only"]
)
def test_what_weight_decay_reaches(decay_norm_bias, rests):
    """One step without gradients shrinks the decayed parameters and leaves the others, whatever the groups are."""
    torch.manual_seed(0)
    model = build_model(
        "resnet18",
        num_classes=10,
        image_size=8,
        model_kwargs=SMALL,
        activation="smoothrelu",
        data_mean=[0.5] * 3,
        data_std=[0.25] * 3,
    )
    settings = {"lr": 0.1, "weight_decay": 0.1, "decay_norm_bias": decay_norm_bias}
    optimizer = build_optimizer(model, make_recipe("default", {}, settings))
    kinds = set()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        norm = isinstance(modules[owner], nn.BatchNorm2d)
        activation = not isinstance(modules[owner], (nn.BatchNorm2d, nn.Conv2d, nn.Linear))
        kind = "alpha" if activation else "norm" if norm else last
        kinds.add(kind)
        expected = before[name] if kind in rests else before[name] * (1 - 0.1 * 0.1)
        assert torch.allclose(parameter, expected, rtol=1e-6), name
    assert kinds == {"alpha", "norm", "bias", "weight"}
