"""MOAT: stages, their costs and mixtures, and resume within a period."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from timm_robust_plugins.moat.moat import MOAT
from timm_robust_plugins.moat.stages import mean_cost, parse_stages, period

from tests.support import EPS, Killed, cross_entropies, curved, equal, input_gradient, on, weights
from timm_robust.errors import UserError
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine
from timm_robust.training.pass_counter import PassCounter

COSTS = [
    ("benign:1", 1),
    ("fgsm-rs:1", 2),
    ("fgsm:1", 2),
    ("r1", 7 / 3),
    ("benign:1, fgsm-rs:1, pgd-7:1", 11 / 3),
    ("benign:1, fgsm-rs:1, pgd-10:1", 14 / 3),
    ("pgd-2:1", 3),
    ("pgd-10:1", 11),
    ("r2", (1 + 3 + 7) / 3),
    ("benign:2, 0.25*benign + 0.75*pgd-3:1", 7 / 3),
]


@pytest.mark.parametrize(("stages", "cost"), COSTS)
def test_moat_costs_what_it_says(stages, cost):
    said = []
    parsed = parse_stages(stages)
    assert mean_cost(parsed) == pytest.approx(cost)
    bench = Bench.make("moat", method_args={"stages": stages})
    counter = PassCounter(bench.model)
    bench.train(period(parsed))
    assert counter.passes / (16 * period(parsed)) == pytest.approx(cost)
    bench.defense.setup(replace(bench.run, say=said.append))
    assert f"{cost:.2f} forward-backward passes" in said[0]


@pytest.mark.parametrize(
    ("stages", "word"),
    [
        ("bening:1", "'bening' is not a kind of examples"),
        ("benign:1, pgd:2", "'pgd' is not a kind of examples"),
        ("benign:1, pgd-0:2", "'pgd-0' is not a kind of examples"),
        ("benign + pgd3:1", "'pgd3' is not a kind of examples"),
        ("benign", "the length 'benign' is not a positive integer"),
        ("benign:0", "the length '0' is not a positive integer"),
        ("benign:1, fgsm:1.5", "the length '1.5' is not a positive integer"),
        ("benign:", "the length '' is not a positive integer"),
        ("0.5*benign + 0.4*fgsm:1", "the weights of '0.5.benign . 0.4.fgsm:1' do not sum to 1"),
        ("0.5*benign + fgsm:1", "the weights of '0.5.benign . fgsm:1' do not sum to 1"),
        ("0.5.5*benign:1", "'0.5.5.benign' is not a kind of examples"),
        ("r3", "'r3'"),
        ("", "option 'stages' is ''"),
    ],
)
def test_moat_names_the_word_it_does_not_know(stages, word, train_small):
    with pytest.raises(UserError, match=word):
        parse_stages(stages)
    with pytest.raises(UserError, match=word):
        train_small("moat", method_args={"stages": stages})


def test_moat_mixtures():
    """The weighted sum of the kinds' losses; even weights where none are given."""
    model = curved()
    defense, batch = on(model, "moat", stages="0.25*benign + 0.75*fgsm:1, benign + fgsm:1")
    fgsm = (batch.images + EPS * input_gradient(model, batch.images, batch.targets).sign()).clamp(0, 1)
    targets = batch.targets.numpy()
    clean, adversarial = (cross_entropies(model(x).detach().numpy(), targets).mean() for x in (batch.images, fgsm))
    for weight in (0.75, 0.5, 0.75):
        perturbed = defense.perturb(batch)
        output = defense.loss(batch, perturbed)
        assert output["loss"].item() == pytest.approx((1 - weight) * clean + weight * adversarial, rel=1e-6)
        defense.commit(batch, perturbed, output)


@pytest.mark.parametrize(
    ("stages", "options", "method", "same"),
    [
        ("benign:1", {}, "standard", {}),
        ("fgsm:1", {"attack_bn": "train"}, "fgsm", {}),
        ("fgsm-rs:1", {"attack_bn": "train"}, "fgsm-rs", {}),
        ("fgsm-rs:3, fgsm-rs:2", {"single_step_ratio": 1.0}, "fgsm-rs", {"step_ratio": 1.0, "attack_bn": "eval"}),
        ("pgd-3:1", {"multi_step_ratio": 0.25}, "pgd", {"steps": 3, "attack_bn": "eval"}),
    ],
)
def test_moat_of_one_stage_is_the_plain_method(train_small, stages, options, method, same):
    ours = train_small("moat", output="ours", method_args={"stages": stages, **options})
    plain = train_small(method, output="plain", method_args=same)
    assert equal(weights(ours), weights(plain))
    assert [r["passes"] for r in ours.history] == [r["passes"] for r in plain.history]


def test_moat_goes_on_in_the_middle_of_a_period(train_small, monkeypatch):
    kinds, perturb, epoch = [], MOAT.perturb, Engine._train_epoch

    def watched(self, batch):
        perturbed = perturb(self, batch)
        kinds.append("benign" if torch.equal(perturbed.images, batch.images) else "adversarial")
        return perturbed

    monkeypatch.setattr(MOAT, "perturb", watched)
    settings = {"method": "moat", "method_args": {"stages": "benign:2, pgd-2:1"}, "batch_size": 40, "epochs": 3}
    whole = train_small(output="whole", **settings)
    assert kinds == (["benign", "benign", "adversarial"] * 7)[:21], "7 batches in an epoch, 3 in a period"

    def killed_in_second(self):
        if self.epoch == 1:
            raise Killed
        return epoch(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed_in_second)
    with pytest.raises(Killed):
        train_small(output="killed", **settings)
    monkeypatch.setattr(Engine, "_train_epoch", epoch)
    kinds.clear()
    resumed = train_small(output="killed", resume=True, **settings)
    assert kinds[:3] == ["benign", "adversarial", "benign"]
    assert equal(weights(whole), weights(resumed))


def test_moat_of_epochs_chooses_at_the_end_of_a_period(train_small):
    bench = Bench.make("moat", method_args={"stages": "benign:2, fgsm:1", "unit": "epoch"})
    bench.defense.run = replace(bench.run, epochs=8)
    assert [epoch for epoch in range(8) if bench.defense.may_be_best(epoch)] == [2, 5, 7]
    by_iteration = Bench.make("moat", method_args={"stages": "benign:2, fgsm:1"}).defense
    assert all(by_iteration.may_be_best(epoch) for epoch in range(8))

    options = {"stages": "fgsm:1, benign:1", "unit": "epoch"}
    result = train_small("moat", method_args=options, epochs=5)
    assert [row["passes"] for row in result.history] == [2.0, 1.0, 2.0, 1.0, 2.0]
    best = [row["epoch"] for row in result.history if row["best"]]
    assert best and set(best) <= {2, 4, 5}
    assert json.loads((result.output / "best/model.json").read_text())["epoch"] == best[-1]
