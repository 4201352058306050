"""Recipes: their rates against the formulas of the codes they come from, their sources, and the tricks among them."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.atas.atas import CarriedStep
from timm_robust_plugins.pgd.friendly import EarlyStoppedPGD, patience
from torch import nn

from timm_robust.cli import listing, pairs
from timm_robust.defense import Defense
from timm_robust.errors import UserError
from timm_robust.models.activations import canonical_name
from timm_robust.options import parse_options
from timm_robust.plugin import ModifierSpec, get_manager
from timm_robust.recipes.presets import PRESETS, make_recipe
from timm_robust.recipes.recipe import Recipe, share
from timm_robust.testing import Bench
from timm_robust.threat import make_threat
from timm_robust.training.engine import Engine
from timm_robust.training.eps_warmup import eps_factor
from timm_robust.training.optim import Schedule, build_optimizer, scaled

STEPS = 8
"""Optimizer steps of an epoch."""


def rates(recipe: Recipe, steps: int = STEPS) -> np.ndarray:
    """The learning rate of each step, [epochs, steps]."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr, momentum=0.9)
    schedule, found = Schedule(optimizer, recipe, steps), []
    for _ in range(recipe.epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(found).reshape(recipe.epochs, steps)


# learning rates


def test_bag_of_tricks_falls_where_its_code_does():
    """To the step: its time is t = epoch + (i + 1) / n, so each drop begins with the last step before its epoch."""
    t = (np.arange(110)[:, None] * STEPS + np.arange(STEPS) + 1) / STEPS
    expected = np.select([t < 100, t < 105], [0.1, 0.01], 0.001)
    assert np.allclose(rates(make_recipe("bag-of-tricks", {}, {})), expected, rtol=1e-12)


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
    found = rates(make_recipe("bag-of-tricks", {}, settings)).flatten()
    t = (np.arange(110 * STEPS) + 1) / STEPS
    around = np.stack([formula(np.clip(t + shift / STEPS, 0, 110)) for shift in (-2, -1, 0, 1, 2)])
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
    found = rates(recipe)
    assert np.allclose(found[:, :-1], expected[:, None], rtol=1e-9)
    # a fall may take the last step of the epoch before it
    assert all(np.isclose(last, expected[i : i + 2], rtol=1e-9).any() for i, last in enumerate(found[:, -1]))


@pytest.mark.parametrize(("name", "epochs", "peak", "lr"), [("hat", 50, 0.25, 0.21), ("dm", 400, 0.025, 0.2)])
def test_one_cycle_of_released_codes(name, epochs, peak, lr):
    recipe = make_recipe(name, {}, {})
    assert recipe.epochs == epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * STEPS, pct_start=peak)
    expected = []
    for _ in range(epochs * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert np.allclose(rates(recipe).flatten(), expected, rtol=1e-9)
    assert build_optimizer(nn.Linear(2, 2), recipe).param_groups[0]["nesterov"]


def test_bag_of_tricks_takes_plain_momentum_and_decays_everything():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (group,) = build_optimizer(network, make_recipe("bag-of-tricks", {}, {})).param_groups
    assert not group["nesterov"] and group["momentum"] == 0.9 and group["weight_decay"] == 5e-4
    assert len(group["params"]) == 4


@pytest.mark.parametrize("schedule", ["multistep", "step", "cosine"])
@pytest.mark.parametrize("warmup", [1, 1.5, 3, 15])
def test_warm_up_of_the_rate_does_not_overshoot(schedule, warmup):
    """The code of Bag of Tricks reaches (W + 1) / W of the rate in its last warm-up epoch."""
    recipe = make_recipe("bag-of-tricks", {}, {"schedule": schedule, "epochs": 20, "warmup_epochs": warmup})
    found = rates(recipe, 7).flatten()
    assert found[0] == 0 and found.max() <= 0.1 * (1 + 1e-12)
    assert (np.diff(found[: int(7 * warmup)]) > 0).all()


@pytest.mark.parametrize("text", ["1/0", "a/2", "", "1/2/3", "1/x"])
def test_a_share_is_a_number_or_a_fraction(text):
    assert share("100/110") == 100 / 110 and share(" 0.25 ") == 0.25
    with pytest.raises(ValueError):
        share(text)
    with pytest.raises(UserError, match="expected increasing shares"):
        rates(make_recipe("rice", {}, {"milestones": f"0.5,{text}"}))


# presets


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_notes_are_about_values_and_the_command_works(preset):
    assert make_recipe(preset.name, {}, {}).epochs >= 1
    assert set(preset.notes) <= set(preset.values) <= {field.name for field in fields(Recipe)}
    if preset.use:
        check_command(preset.name, shlex.split(preset.use))


def check_command(name: str, words: list[str]) -> None:
    """Method, modifiers and options exist, and the recipe is this one."""
    given: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("-"):
            values = given.setdefault(word, [])
        else:
            values.append(word)
    manager, (method,) = get_manager(), given.pop("--method")
    modifiers, options = given.pop("--modifier", []), given.pop("-o", [])
    assert given.pop("--extra-data", None) in (None, ["GENERATED"])
    (activation,) = given.pop("--activation", ["silu"])
    assert canonical_name(activation) and given == {"--recipe": [name]}
    own = pairs([item for item in options if "." not in item.partition("=")[0]], "-o")
    parse_options(manager.load_config(method), own, owner=method)
    for modifier in modifiers:
        theirs = [item.removeprefix(f"{modifier}.") for item in options if item.startswith(f"{modifier}.")]
        parse_options(manager.load_config(modifier, ModifierSpec), pairs(theirs, "-o"), owner=modifier)


def test_every_value_of_bag_of_tricks_says_where_it_stands():
    preset = PRESETS["bag-of-tricks"]
    assert set(preset.notes) == set(preset.values)


def test_sources_are_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    listing.recipes("bag-of-tricks", False)
    shown = capsys.readouterr().out
    for part in (
        "Pang et al., Bag of Tricks",
        "--method pgd -o attack_bn=eval --recipe bag-of-tricks",
        "code: all parameters, BatchNorm and biases included",
        "departs from its source: ",
    ):
        assert part in shown
    (line,) = (line for line in shown.splitlines() if " accumulate " in line)
    assert "default" in line
    listing.recipes("trades", True)
    told = json.loads(capsys.readouterr().out)
    assert told["values"]["weight_decay"] == 2e-4 and "code: 2e-4" in told["sources"]["weight_decay"]
    assert told["sources"]["lr"] == PRESETS["trades"].source and told["sources"]["ema"] == "default"


# label smoothing, scaled rate


def test_label_smoothing_is_that_of_the_field():
    """0.2 for ten classes is what PyTorch calls 0.2222."""
    defense = Defense(options=None)
    defense.run = SimpleNamespace(recipe=make_recipe("default", {}, {"label_smoothing": 0.2}))
    logits, targets = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    labels = torch.full((6, 10), 0.2 / 9, dtype=torch.float64).scatter_(1, targets[:, None], 0.8)
    found = defense.cross_entropy(logits, targets)
    assert torch.allclose(found, -(labels * logits.log_softmax(1)).sum(1).mean())
    assert torch.allclose(found, F.cross_entropy(logits, targets, label_smoothing=2 / 9))


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


# warm-up of the radius


def test_radius_of_each_step():
    """Bag of Tricks' (t + 1) / W with t = epoch + (i + 1) / n, without its overshoot."""
    recipe = make_recipe("bag-of-tricks", {}, {"eps_warmup_epochs": 15})
    t = np.arange(1, 40 * STEPS + 1) / STEPS
    found = np.array([eps_factor(recipe, done) for done in t])
    assert np.allclose(found, np.minimum(1, (t + 1) / 15)) and found.max() == 1
    assert found[0] == pytest.approx((1 + 1 / STEPS) / 15) and (found[t >= 14] == 1).all() and (found[t < 14] < 1).all()
    assert eps_factor(make_recipe("bag-of-tricks", {}, {}), 0.1) == 1
    short = make_recipe("bag-of-tricks", {}, {"eps_warmup_epochs": 15, "epochs": 4})
    assert eps_factor(short, 1) == 0.5 and eps_factor(short, 4) == 1, "the last epoch always has all of it"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("pgd", {"steps": 2}),
        ("pgd", {"steps": 2, "stop_after": "1"}),
        ("trades", {"steps": 1}),
        ("n-fgsm", {}),
        ("gradalign", {}),
        ("free", {"replays": 2}),
        ("fgsm-mep", {}),
        ("atas", {"warmup_epochs": 1, "reset_epochs": 2}),
    ],
)
def test_images_stay_inside_the_radius_of_their_step(train_small, monkeypatch, method, options):
    """Whatever a method carries over from earlier steps; checks keep the full radius, and attacks do not pile up."""
    seen, epochs, full = [], 3, make_threat(image_size=8)
    cls, original = get_manager().load_target(method), Engine._update

    def noted(self, clip):
        seen.append((self.run.threat.eps, self.attacker.threat.eps, len(self.attacker._attacks)))
        assert self.checker.threat == self.config.threat == full
        original(self, clip)

    def watched(self, batch):
        perturbed = crafted(self, batch)
        far = (perturbed.images.detach() - batch.images).abs().max().item()
        assert far <= self.eps_multiplier * self.run.threat.eps + 1e-6
        assert far > 0 or method == "free"
        return perturbed

    crafted = cls.perturb
    monkeypatch.setattr(cls, "perturb", watched)
    monkeypatch.setattr(Engine, "_update", noted)
    settings = {"eps_warmup_epochs": epochs, "check_attack": "pgd-1-1", "watch_every": 1000}
    train_small(method, epochs=epochs, batch_size=90, method_args=options, recipe_args=settings)
    radii, same, kept = np.array(seen).T
    t = np.arange(1, len(radii) + 1) / (len(radii) / epochs)
    assert np.allclose(radii, full.eps * np.minimum(1, (t + 1) / epochs)) and (radii == same).all()
    assert kept.max() <= 2


def test_atas_starts_inside_a_ball_smaller_than_when_it_drew():
    model, images, labels = images_of(0)
    attack = CarriedStep(model, 0.02, decay=0.5, soft_norm=1.0, numerator=0.01, low=0.001, high=0.01)
    carried, average = 0.06 * torch.rand_like(images) - 0.03, torch.zeros(40, dtype=torch.float64)
    found = [attack(images, labels, start, average, True) for start in (carried, carried.clamp(-0.02, 0.02))]
    assert torch.equal(*found) and (carried.abs() > 0.02).any()


# early-stopped attack


def images_of(seed: int, n: int = 40) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A random network in float64 whose decisions attacks change at different steps, images, and its own labels."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 24), nn.Tanh(), nn.Linear(24, 4)).double().eval()
    images = torch.rand(n, 3, 4, 4, dtype=torch.float64)
    return model, images, model(images).argmax(1)


def friendly(model, image, label, start, *, eps, alpha, steps, tau):
    """Algorithm 1 of Zhang et al. for one image: goes on as long as it is classified, then `tau` steps more in all."""
    adversarial = start
    for _ in range(steps):
        points = adversarial.clone().requires_grad_(True)
        logits = model(points[None])
        if logits.argmax().item() != label:
            if tau == 0:
                break
            tau -= 1
        F.cross_entropy(logits, label[None]).backward()
        moved = adversarial + alpha * points.grad.sign()
        adversarial = torch.minimum(torch.maximum(moved, image - eps), image + eps).clamp(0, 1)
    return adversarial


@pytest.mark.parametrize("tau", [0, 1, 2])
@pytest.mark.parametrize("random_start", [True, False])
def test_early_stopped_attack_image_by_image(tau, random_start):
    eps, alpha, steps = 0.12, 0.03, 6
    model, images, labels = images_of(tau)
    labels = torch.where(torch.arange(40) < 5, (labels + 1) % 4, labels)  # some are wrong from the start
    attack = EarlyStoppedPGD(model, eps, alpha, steps, random_start, stop_after=tau + 1)
    torch.manual_seed(9)
    found = attack(images, labels)
    torch.manual_seed(9)
    noise = torch.empty_like(images).uniform_(-eps, eps) if random_start else torch.zeros_like(images)
    starts = (images + noise).clamp(0, 1)
    settings = {"eps": eps, "alpha": alpha, "steps": steps, "tau": tau}
    expected = [friendly(model, *one, **settings) for one in zip(images, labels, starts, strict=True)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-12)
    full = EarlyStoppedPGD(model, eps, alpha, steps, random_start, stop_after=steps + 1)
    torch.manual_seed(9)
    rested = (full(images, labels) - found).flatten(1).abs().amax(1) > 0
    assert 5 <= rested.sum() < 40, "some rest early and some never"


def test_an_attack_that_never_stops_is_pgd(small_model):
    bench = Bench.make("pgd", method_args={"stop_after": 11, "attack_bn": "eval"})
    plain = Bench.make("pgd", method_args={"attack_bn": "eval"})
    assert torch.equal(bench.step()[0].images, plain.step()[0].images)


def test_counts_along_the_run():
    bench = Bench.make("pgd", method_args={"stop_after": "0:1,60/110:2,100/110:3"})
    bench.run.epochs = 110
    counts = []
    for epoch in range(110):
        bench.defense.on_epoch_start(epoch)
        counts.append(bench.defense.stop_after)
    assert counts == [1] * 60 + [2] * 40 + [3] * 10
    assert patience("2") == [(0.0, 2)]


@pytest.mark.parametrize(
    "text", ["0", "x", "0.5:1", "0:1,1:2", "0:1.5", "0:1,0.5:0", "0:1,0:2", "nan", "0:inf", ",", "1/0"]
)
def test_counts_are_checked(train_small, tmp_path, text):
    with pytest.raises(UserError, match="option 'stop_after' is .*: expected a count such as 1"):
        train_small("pgd", method_args={"stop_after": text})
    assert not (tmp_path / "run").exists()


def test_early_stopping_knows_linf_only(train_small):
    with pytest.raises(UserError, match="'stop_after' of method 'pgd' knows the norm Linf only, not L2"):
        train_small("pgd", norm="L2", eps=0.5, method_args={"stop_after": 1})
