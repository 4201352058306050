"""Modifiers: what they do to weights, against formulas and loops written independently, and that they compose."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm_robust_plugins.awp.awp import AWP, weight_perturbation
from timm_robust_plugins.awp.options import AwpOptions

import timm_robust
from timm_robust.errors import UserError
from timm_robust.modifier import Modifier, Modifiers
from timm_robust.plugin import ModifierSpec, Reference, get_manager, hookimpl
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine


def weights(folder, name="last"):
    return load_file(folder / name / "model.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def trained_a_little() -> Bench:
    """timm starts the last BatchNorm of a block at 0, so at first no gradient reaches the block."""
    bench = Bench.make("pgd")
    bench.train(2)
    return bench


def awp_on(bench: Bench, **options) -> Modifiers:
    modifiers = Modifiers({"awp": AWP(AwpOptions(start=0.0, **options))}, bench.model)
    modifiers.setup(bench.run)
    modifiers.on_epoch_start(0)
    return modifiers


def test_weight_perturbation_against_its_formula():
    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape) for shape in ((4, 3, 3, 3), (10, 7))]
    gradients = [1e-6 * random.standard_normal(weight.shape) for weight in weights]
    expected = [
        0.01 * np.sqrt((w**2).sum()) * g / np.sqrt((g**2).sum()) for w, g in zip(weights, gradients, strict=True)
    ]
    got = weight_perturbation([torch.tensor(w) for w in weights], [torch.tensor(g) for g in gradients], gamma=0.01)
    for one, other, weight in zip(got, expected, weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-12)
        assert one.norm().item() == pytest.approx(0.01 * np.linalg.norm(weight), rel=1e-12)


def test_a_layer_without_gradient_is_not_moved():
    (step,) = weight_perturbation([torch.ones(3, 3)], [torch.zeros(3, 3)], gamma=0.01)
    assert torch.equal(step, torch.zeros(3, 3))


def test_awp_moves_layers_only_and_brings_them_back_bit_for_bit():
    bench = trained_a_little()
    perturbed = bench.defense.perturb(bench.batch)
    before = copy.deepcopy(bench.model.state_dict())
    torch.manual_seed(3)
    with awp_on(bench, gamma=0.02).weights(lambda: bench.defense.loss(bench.batch, perturbed)["loss"]):
        drawn = torch.rand(5)
        inside = copy.deepcopy(bench.model.state_dict())
    layers = {name for name, value in bench.model.named_parameters() if value.ndim > 1}
    for name, value in before.items():
        if name in layers:
            length = (inside[name] - value).norm() / value.norm()
            assert length.item() == pytest.approx(0.02, rel=1e-4)
        else:  # biases, BatchNorm's weights, and its statistics, which the climb does not record
            assert torch.equal(inside[name], value), name
    assert equal(bench.model.state_dict(), before)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(5))  # the climb drew from nobody's stream


def test_awp_brings_weights_back_after_an_exception():
    bench = trained_a_little()
    perturbed = bench.defense.perturb(bench.batch)
    before = copy.deepcopy(bench.model.state_dict())
    with (
        pytest.raises(ZeroDivisionError),
        awp_on(bench).weights(lambda: bench.defense.loss(bench.batch, perturbed)["loss"]),
    ):
        raise ZeroDivisionError
    assert equal(bench.model.state_dict(), before)


def test_awp_takes_the_gradient_of_the_released_algorithm():
    """A proxy climbs with one step of SGD, each layer's way is scaled to gamma times its norm, and added."""
    bench = trained_a_little()
    perturbed = bench.defense.perturb(bench.batch)
    bench.model.zero_grad()
    by_hand = copy.deepcopy(bench.model)
    proxy = copy.deepcopy(bench.model)
    (-F.cross_entropy(proxy(perturbed.images), bench.batch.targets)).backward()
    torch.optim.SGD(proxy.parameters(), lr=0.01).step()
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            if weight.ndim > 1:
                way = dict(proxy.named_parameters())[name] - weight
                weight += 0.01 * weight.norm() / (way.norm() + 1e-20) * way
    F.cross_entropy(by_hand(perturbed.images), bench.batch.targets).backward()

    with awp_on(bench, gamma=0.01).weights(lambda: bench.defense.loss(bench.batch, perturbed)["loss"]):
        bench.defense.loss(bench.batch, perturbed)["loss"].backward()
    for (name, ours), theirs in zip(bench.model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    statistics = dict(by_hand.named_buffers())
    for name, ours in bench.model.named_buffers():
        torch.testing.assert_close(ours, statistics[name], rtol=1e-3, atol=1e-5, msg=name)


def test_awp_with_gamma_0_changes_nothing(train_small):
    plain = train_small("pgd", "plain", method_args={"steps": 2})
    modified = train_small("pgd", "awp", method_args={"steps": 2}, modifiers={"awp": {"gamma": 0}})
    perturbed = train_small("pgd", "moved", method_args={"steps": 2}, modifiers={"awp": {"start": 0}})
    assert equal(weights(plain.output), weights(modified.output))
    assert not equal(weights(plain.output), weights(perturbed.output))
    assert perturbed.history[0]["passes"] == plain.history[0]["passes"] + 1


def test_awp_starts_when_it_is_told_to(train_small):
    plain = train_small("fgsm-rs", "plain")
    late = train_small("fgsm-rs", "late", modifiers={"awp": {"start": 0.5}})
    assert [row["passes"] for row in plain.history] == [2.0, 2.0]
    assert [row["passes"] for row in late.history] == [2.0, 3.0]
    assert plain.history[0]["train_loss"] == late.history[0]["train_loss"]


@contextmanager
def every_epoch(kept):
    """Keeps the trained weights after each epoch."""
    original = Engine._train_epoch

    def training(self):
        metrics = original(self)
        kept.append({name: value.clone() for name, value in self.unwrapped_model.model.state_dict().items()})
        return metrics

    Engine._train_epoch = training
    try:
        yield
    finally:
        Engine._train_epoch = original


def test_swa_ships_the_mean_of_the_epochs_with_statistics_of_its_own(train_small, few_digits):
    kept = []
    with every_epoch(kept):
        result = train_small("standard", epochs=4, modifiers={"swa": {"start": 0.25}}, recipe_args={"augment": "none"})
    eval_model = weights(result.output)
    for name in dict(timm_robust.load(result.output / "last").model.named_parameters()):
        mean = np.mean([epoch[name].numpy().astype(np.float64) for epoch in kept[1:]], axis=0)
        np.testing.assert_allclose(eval_model[name].numpy(), mean, rtol=1e-5, atol=1e-6, err_msg=name)
    # the first layer sees the images themselves: its mean over all of them, and not that of the last epoch's weights
    model = timm_robust.load(result.output / "last")
    images = timm_robust.data.load_data(few_digits).train.pixels.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features = model.model.conv1((images - model.mean) / model.std)
    seen = features.mean(dim=(0, 2, 3))
    torch.testing.assert_close(eval_model["bn1.running_mean"], seen, rtol=0.02, atol=0.02)
    assert (eval_model["bn1.running_mean"] - kept[-1]["bn1.running_mean"]).abs().max() > 1e-3


def test_before_its_start_swa_ships_the_trained_weights(train_small):
    plain = train_small("standard", "plain", epochs=1)
    early = train_small("standard", "early", epochs=1, modifiers={"swa": {"start": 1.0}})
    assert equal(weights(plain.output), weights(early.output))


def test_moving_average_against_its_formula(train_small):
    kept = []
    original = Engine._update

    def update(self, clip):
        original(self, clip)
        kept.append(self.unwrapped_model.model.conv1.weight.detach().double().clone())

    Engine._update = update
    try:
        result = train_small("standard", epochs=1, recipe_args={"ema": 0.9})
    finally:
        Engine._update = original
    average = kept[0]
    for step in kept[1:]:
        average = 0.9 * average + 0.1 * step
    torch.testing.assert_close(weights(result.output)["conv1.weight"].double(), average, rtol=1e-5, atol=1e-6)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        {"modifiers": ["awp", "swa"]},
        {"modifiers": {"awp": {"start": 0.5}}, "recipe_args": {"ema": 0.9, "check_attack": "pgd-1-1"}},
        {"method": "lbgat", "modifiers": ["awp"], "method_args": {"beta": 6}},
    ],
    ids=["awp-swa", "awp-ema", "companion"],
)
def test_resumed_run_ends_with_the_same_bits(train_small, monkeypatch, settings):
    settings = {"method": "fgsm-rs", **settings}
    whole = train_small(output="whole", epochs=3, **settings)
    original = Engine._train_epoch

    def killed_in_third(self):
        if self.epoch == 2:
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed_in_third)
    with pytest.raises(Killed):
        train_small(output="killed", epochs=3, **settings)
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = train_small(output="killed", epochs=3, resume=True, **settings)
    assert equal(weights(whole.output), weights(resumed.output))


def test_two_averages_are_refused(train_small, tmp_path):
    with pytest.raises(UserError, match="'swa' and 'ema' both average the weights: choose one"):
        train_small(modifiers=["swa"], recipe_args={"ema": 0.9})
    assert not (tmp_path / "run").exists()


def test_wrong_modifiers_are_named(train_small):
    with pytest.raises(UserError, match=r"unknown modifier 'awq'.*did you mean awp"):
        train_small(modifiers=["awq"])
    with pytest.raises(UserError, match=r"unknown option 'gama'.*did you mean gamma.*modifier 'awp'"):
        train_small(modifiers={"awp": {"gama": 1}})
    with pytest.raises(UserError, match="modifier 'ema' is a recipe setting here: --set ema=0.999"):
        train_small(modifiers=["ema"])


def test_manifest_and_card_name_modifiers(train_small):
    result = train_small("standard", epochs=1, modifiers={"awp": {"gamma": 0.01}})
    manifest = timm_robust.runs.checkpoint.json.loads((result.output / "manifest.json").read_text())
    assert manifest["modifiers"] == {"awp": {"gamma": 0.01, "start": 0.05}}
    assert manifest["modifier_plugins"]["awp"]["distribution"] == "timm-robust"
    assert manifest["asked"]["modifiers"] == {"awp": {"gamma": 0.01}}


class Counting(Modifier):
    """Counts what it is called for."""

    calls: ClassVar[list[str]] = []

    @contextmanager
    def weights(self, loss):
        self.calls.append("in")
        yield
        self.calls.append("out")

    def after_step(self):
        self.calls.append("step")

    def on_epoch_start(self, epoch):
        self.calls.append(f"start {epoch}")

    def on_epoch_end(self, epoch):
        self.calls.append(f"end {epoch}")


class Stranger:
    """A plugin registered by hand."""

    @staticmethod
    @hookimpl
    def timm_robust_modifiers():
        yield ModifierSpec(
            name="counting",
            summary="counts",
            reference=Reference(title="Counting"),
            api_version=1,
            target=f"{__name__}:Counting",
            config="timm_robust_plugins.awp.options:AwpOptions",
        )


def test_a_strangers_modifier_is_called_around_every_update(train_small):
    Counting.calls.clear()
    with get_manager().using(Stranger, name="stranger"):
        train_small("standard", epochs=1, modifiers=["counting"], batch_size=64, recipe_args={"accumulate": 2})
    middle = ["in", "out", "in", "out", "step"]
    assert Counting.calls == ["start 0", *middle, *middle, "end 0"] or Counting.calls[:6] == ["start 0", *middle]
    assert Counting.calls[-1] == "end 0"


TOGETHER = {
    "awp-swa-silu": {"modifiers": {"awp": {"start": 0.0}, "swa": {"start": 0.0}}, "activation": "silu"},
    "awp-ema-smoothing-cutout": {
        "modifiers": {"awp": {"start": 0.0}},
        "recipe_args": {"ema": 0.9, "label_smoothing": 0.1, "augment": "cutout"},
    },
    "awp-idbh-extra": {
        "modifiers": {"awp": {"start": 0.0}},
        "recipe_args": {"augment": "idbh-weak"},
        "extra_data": (torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10),
        "extra_share": 0.3,
    },
}


PASSES: dict[str, float] = {}
"""Of each method alone, measured once."""


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("method", sorted(get_manager().defenses()))
def test_everything_composes(train_small, method, together):
    """Every registered method, for real: weights perturbed and averaged, smooth activations, labels, other images."""
    check = {"check_attack": "pgd-1-1"}
    if method not in PASSES:
        PASSES[method] = train_small(method, "alone", epochs=1, recipe_args=check).history[0]["passes"]
    settings = copy.deepcopy(TOGETHER[together])
    settings["recipe_args"] = {**check, **settings.get("recipe_args", {})}
    if (method, together) == ("atas", "awp-idbh-extra"):
        with pytest.raises(UserError, match="idbh"):  # its perturbations cannot follow what IDBH does
            train_small(method, epochs=1, **settings)
        return
    result = train_small(method, epochs=1, **settings)
    assert all(value.isfinite().all() for value in weights(result.output).values())
    # AWP's climb is a pass of its own in every update
    assert result.history[0]["passes"] >= PASSES[method] + 0.99
