"""Recipes by name: rates against the formulas of the codes they come from, sources, owners, and what overrides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.plugin.conftest import plugin_of
from tests.support import STEPS_PER_EPOCH, learning_rates
from timm_robust.errors import UserError
from timm_robust.plugin import RecipeSpec, get_manager
from timm_robust.plugin.errors import PluginConflict
from timm_robust.recipes.presets import GENERAL, all_recipes, find_recipe, make_recipe, recommendations
from timm_robust.training.optim import build_optimizer


def test_bag_of_tricks_falls_where_its_code_does():
    """To the step: its time is t = epoch + (i + 1) / n, so each drop begins with the last step before its epoch."""
    t = (np.arange(110)[:, None] * STEPS_PER_EPOCH + np.arange(STEPS_PER_EPOCH) + 1) / STEPS_PER_EPOCH
    expected = np.select([t < 100, t < 105], [0.1, 0.01], 0.001)
    assert np.allclose(learning_rates(make_recipe("bag-of-tricks", {}, {})), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"milestones": "100/110,102/110"}, lambda t: np.select([t < 100, t < 102], [0.1, 0.01], 0.001)),
        ({"milestones": "100/110"}, lambda t: np.where(t < 100, 0.1, 0.01)),
        (
            {"schedule": "piecewise", "points": "0:1,100/110:1,100/110:0.1,105/110:0,1:0"},
            lambda t: np.where(t < 100, 0.1, 0.1 * 0.02 * np.clip(105 - t, 0, None)),
        ),
        (
            {"schedule": "piecewise", "points": "0:1,36/110:1,73/110:0.1,1:0.01"},
            lambda t: 0.1 * np.interp(t, [0, 110 // 3, 110 * 2 // 3, 110], [1, 1, 0.1, 0.01]),
        ),
        (
            {"schedule": "piecewise", "points": "0:0,44/110:1,1:0"},
            lambda t: np.interp(t, [0, 110 * 2 // 5, 110], [0, 0.1, 0]),
        ),
        ({"schedule": "cosine"}, lambda t: 0.1 / 2 * (1 + np.cos(np.pi * t / 110))),
    ],
    ids=["intense", "loose", "lineardecay", "linear", "superconverge", "cosine"],
)
def test_other_schedules_of_bag_of_tricks_are_settings(settings, formula):
    """Within two steps of its formulas, which count the step under way as done."""
    found = learning_rates(make_recipe("bag-of-tricks", {}, settings)).flatten()
    t = (np.arange(110 * STEPS_PER_EPOCH) + 1) / STEPS_PER_EPOCH
    around = np.stack([formula(np.clip(t + shift / STEPS_PER_EPOCH, 0, 110)) for shift in (-2, -1, 0, 1, 2)])
    assert ((around.min(axis=0) - 1e-9 <= found) & (found <= around.max(axis=0) + 1e-9)).all()


FROM_ONE = {
    "trades": lambda e: 0.1 if e < 75 else 0.01,
    "trades-awp": lambda e: 0.1 if e < 100 else 0.01 if e < 150 else 0.001,
    "mart": lambda e: 0.01 if e < 75 else 1e-3 if e < 90 else 1e-4 if e < 100 else 1e-5,
    "sglr": lambda e: 0.1 if e < 100 else 0.01 if e < 150 else 0.001,
    "lbgat": lambda e: 0.02 if e == 1 else 0.1 if e < 76 else 0.01 if e < 91 else 0.001,
    "fat": lambda e: 0.1 if e < 60 else 0.01 if e < 90 else 0.001 if e < 110 else 0.0005,
    # these count from zero
    "te": lambda e: 0.1 if e - 1 < 100 else 0.01 if e - 1 < 150 else 0.001,
    "kd-swa": lambda e: 0.1 if e - 1 < 50 else 0.01 if e - 1 < 150 else 0.001,
    "awp": lambda e: 0.1 if e - 1 < 100 else 0.01 if e - 1 < 150 else 0.001,
    "idbh": lambda e: 0.1 if e - 1 < 100 else 0.01 if e - 1 < 150 else 0.001,
    "rice": lambda e: 0.1 if e - 1 < 100 else 0.01 if e - 1 < 150 else 0.001,
}
"""The rate of each epoch in the released codes, epochs counted from 1."""


@pytest.mark.parametrize("name", FROM_ONE)
def test_rates_of_released_codes(name):
    recipe = make_recipe(name, {}, {})
    expected = np.array([FROM_ONE[name](epoch) for epoch in range(1, recipe.epochs + 1)])
    found = learning_rates(recipe)
    assert np.allclose(found[:, :-1], expected[:, None], rtol=1e-9)
    # a fall may take the last step of the epoch before it
    assert all(np.isclose(last, expected[i : i + 2], rtol=1e-9).any() for i, last in enumerate(found[:, -1]))


@pytest.mark.parametrize(("name", "epochs", "peak", "lr"), [("hat", 50, 0.25, 0.21), ("dm", 400, 0.025, 0.2)])
def test_one_cycle_of_released_codes(name, epochs, peak, lr):
    recipe = make_recipe(name, {}, {})
    assert recipe.epochs == epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * STEPS_PER_EPOCH, pct_start=peak)
    expected = []
    for _ in range(epochs * STEPS_PER_EPOCH):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert np.allclose(learning_rates(recipe).flatten(), expected, rtol=1e-9)
    assert build_optimizer(nn.Linear(2, 2), recipe).param_groups[0]["nesterov"]


def test_bag_of_tricks_takes_plain_momentum_and_decays_everything():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (group,) = build_optimizer(network, make_recipe("bag-of-tricks", {}, {})).param_groups
    assert not group["nesterov"] and group["momentum"] == 0.9 and group["weight_decay"] == 5e-4
    assert len(group["params"]) == 4


def test_every_value_of_bag_of_tricks_says_where_it_stands():
    spec = find_recipe("bag-of-tricks").spec
    assert set(spec.notes) == set(spec.values)


def test_later_settings_win():
    """Defaults < named recipe < what the method recommends < the user."""
    recipe = make_recipe("rice", {"epochs": 50, "lr": 0.3, "weight_decay": 1e-3}, {"lr": "0.05", "ema": 0.99})
    assert recipe.lr == 0.05, "the user's, over the method's and the recipe's, as a number"
    assert recipe.epochs == 50 and recipe.weight_decay == 1e-3, "the method's, over the recipe's and the default"
    assert recipe.schedule == "multistep" and recipe.pad_mode == "reflect", "the recipe's, over the default"
    assert recipe.batch_size == 128 and recipe.momentum == 0.9, "the defaults"
    assert recipe.ema == 0.99, "the user's, over the default"


def test_every_recipe_goes_with_every_recommendation():
    for recipe in all_recipes():
        for method in get_manager().defenses().values():
            assert make_recipe(recipe, recommendations(method)[0], {}).epochs >= 1


@pytest.mark.parametrize("source", [({"epoch": 3}, {}), ({}, {"epoch": 3})], ids=["method", "user"])
def test_unknown_setting(source):
    with pytest.raises(UserError, match="unknown recipe setting 'epoch': did you mean epochs"):
        make_recipe("default", *source)


OWNERS = {
    "atas": ["atas", "atas-imagenet"],
    "awp": ["awp", "trades-awp"],
    "fgsm-mep": ["fgsm-mep"],
    "fgsm-rs": ["fast"],
    "free": ["free"],
    "gat": ["gat"],
    "gradalign": ["gradalign"],
    "hat": ["hat"],
    "kd-swa": ["kd-swa"],
    "lbgat": ["lbgat"],
    "mart": ["mart"],
    "n-fgsm": ["n-fgsm"],
    "nuat": ["nuat", "nuat-wa"],
    "pgd": ["rice", "bag-of-tricks", "fat", "idbh"],
    "rded": ["rded-student"],
    "seat": ["seat"],
    "sglr": ["sglr"],
    "te": ["te"],
    "timm-robust": ["default", "digits", "imagenet"],
    "trades": ["trades", "dm", "strong"],
}
"""Recipes of this package by plugin; the general ones are the host's."""


def test_recipes_come_from_the_plugin_of_their_method():
    found: dict[str, list[str]] = {}
    for name, registered in all_recipes().items():
        if registered.distribution == "timm-robust":
            found.setdefault(registered.plugin, []).append(name)
    assert found == OWNERS


def test_general_recipes_need_no_plugin():
    manager = type(get_manager())()
    assert list(manager.recipes(GENERAL)) == ["default", "digits", "imagenet"]
    with pytest.raises(UserError, match="unknown recipe 'defualt': did you mean default"):
        manager.recipe("defualt", GENERAL)


def test_no_plugin_redefines_a_general_recipe():
    spec = RecipeSpec(name="default", summary="mine", source="our choice", api_version=1, values={})
    manager = get_manager()
    manager.register(
        plugin_of(spec, hook="timm_robust_recipes"), name="mine", distribution="timm-robust-mine", version="1"
    )
    try:
        with pytest.raises(
            PluginConflict, match="the recipe 'default' is offered by both timm-robust .* and timm-robust-m"
        ):
            make_recipe("rice", {}, {})
    finally:
        manager.unregister("mine")
