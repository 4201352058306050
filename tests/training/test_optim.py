"""Optimizers and learning rates against formulas written independently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import SMALL, learning_rates
from timm_robust.defense import Defense
from timm_robust.errors import UserError
from timm_robust.models.factory import build_model
from timm_robust.recipes.presets import make_recipe
from timm_robust.recipes.recipe import Recipe
from timm_robust.training.optim import Schedule, build_optimizer, scaled

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


def test_a_plain_cosine_still_ends_at_nothing():
    recipe = make_recipe("default", {}, {"schedule": "cosine", "epochs": 4})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = Schedule(optimizer, recipe, 5)
    for _ in range(20):
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("schedule", ["multistep", "step", "cosine"])
@pytest.mark.parametrize("warmup", [1, 1.5, 3, 15])
def test_warm_up_of_the_rate_does_not_overshoot(schedule, warmup):
    """The code of Bag of Tricks reaches (W + 1) / W of the rate in its last warm-up epoch."""
    recipe = make_recipe("bag-of-tricks", {}, {"schedule": schedule, "epochs": 20, "warmup_epochs": warmup})
    found = learning_rates(recipe, 7).flatten()
    assert found[0] == 0 and found.max() <= 0.1 * (1 + 1e-12)
    assert (np.diff(found[: int(7 * warmup)]) > 0).all()


@pytest.mark.parametrize(
    ("settings", "processes", "lr"),
    [
        ({"batch_size": 256}, 1, 0.1),
        ({"batch_size": 256, "lr_base_size": 128}, 1, 0.2),
        ({"batch_size": 64, "lr_base_size": 128}, 1, 0.05),
        ({"batch_size": 128, "lr_base_size": 128, "accumulate": 3}, 2, 0.6),
    ],
)
def test_scaled_rate(settings, processes, lr):
    assert scaled(make_recipe("bag-of-tricks", {}, settings), processes).lr == pytest.approx(lr)


def test_scaled_rate_in_a_run(train_small, monkeypatch):
    seen = []
    monkeypatch.setattr(Defense, "on_epoch_start", lambda self, epoch: seen.append(self.run.recipe.lr))
    settings = {"schedule": "constant", "optimizer": "momentum", "lr_base_size": 200, "check_attack": "pgd-1-1"}
    rows = train_small("standard", epochs=1, lr=0.1, batch_size=50, recipe_args=settings).history
    assert rows[0]["lr"] == pytest.approx(0.025) and seen == [pytest.approx(0.025)]
