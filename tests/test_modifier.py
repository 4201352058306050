"""Modifiers: composition with every method, resume, and what is refused."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch

import timm_robust
from tests.support import Killed, equal, weights
from timm_robust.errors import UserError
from timm_robust.modifier import Modifier
from timm_robust.plugin import ModifierSpec, Reference, get_manager, hookimpl
from timm_robust.training.engine import Engine


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
