"""LBGAT: its loss against formulas in float64 NumPy, both networks, and resume."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.lbgat.lbgat import LBGAT, lbgat_loss

from tests.support import (
    SMALL,
    TARGETS,
    Killed,
    assert_gradients_are_those_of,
    cross_entropy,
    divergences,
    equal,
    fixed_logits_one_wrong,
    leaves,
    perturbed_at_random,
    softmax,
    weights,
)
from timm_robust.defense import Perturbed
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine

# LBGAT


def lbgat(natural: np.ndarray, clean: np.ndarray, adversarial: np.ndarray, beta: float = 6.0) -> float:
    distance = ((adversarial - natural) ** 2).sum() / natural.size
    return float(distance + cross_entropy(natural, TARGETS) + beta * divergences(clean, adversarial).mean())


def our_lbgat(natural, clean, adversarial, beta: float = 6.0) -> torch.Tensor:
    natural_loss = F.cross_entropy(natural, torch.from_numpy(TARGETS))
    return lbgat_loss(natural_loss, natural, clean, adversarial, beta=beta)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_loss(beta):
    logits = [fixed_logits_one_wrong(seed) for seed in (0, 1, 2)]
    assert our_lbgat(*leaves(*logits), beta).item() == pytest.approx(lbgat(*logits, beta), rel=1e-12)


def test_lbgat_moves_both_networks():
    """The natural logits are not detached in the distance."""
    logits = [fixed_logits_one_wrong(seed) for seed in (0, 1, 2)]
    assert_gradients_are_those_of(lbgat, our_lbgat, *logits)
    natural, clean, adversarial = leaves(*logits)
    our_lbgat(natural, clean, adversarial).backward()
    labels = np.eye(10)[TARGETS]
    expected = 2 * (logits[0] - logits[2]) / 80 + (softmax(logits[0]) - labels) / 8
    assert np.allclose(natural.grad.numpy(), expected, atol=1e-12)


def test_lbgat_distance_reaches_the_natural_networks_weights():
    bench = Bench.make("lbgat")
    natural = bench.run.auxiliary_model

    def gradient(images) -> torch.Tensor:
        loss = bench.defense.loss(bench.batch, Perturbed(images))["loss"]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(natural.parameters()))])

    # the natural network sees the clean images alone: another gradient comes from the distance only
    assert not torch.allclose(gradient(bench.batch.images), gradient(1 - bench.batch.images), rtol=1e-2)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_student_sees_no_label(beta):
    bench = Bench.make("lbgat", method_args={"beta": beta})
    perturbed = perturbed_at_random(bench.batch)
    gradients = []
    for shift in (0, 3):
        batch = replace(bench.batch, targets=(bench.batch.targets + shift) % 10)
        loss = bench.defense.loss(batch, perturbed)["loss"]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(bench.model.parameters()))]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_batchnorm_sees_clean_images_whatever_beta(beta):
    bench = Bench.make("lbgat", method_args={"beta": beta})
    bench.step()
    counts = {int(value) for name, value in bench.model.state_dict().items() if name.endswith("num_batches_tracked")}
    natural = bench.run.auxiliary_model.state_dict().items()
    assert counts == {2}
    assert {int(value) for name, value in natural if name.endswith("num_batches_tracked")} == {1}


def test_lbgat_attacks_the_divergence_at_beta_0_too():
    images = [Bench.make("lbgat", method_args={"beta": beta}).step()[0].images for beta in (0.0, 6.0)]
    assert torch.equal(*images)
    assert torch.equal(images[0], Bench.make("trades").step()[0].images)


def test_lbgat_natural_network_by_name():
    named = Bench.make("lbgat", method_args={"natural_model": "mobilenetv3_small_050"}).run.auxiliary_model
    own = Bench.make("lbgat").run.auxiliary_model
    assert named.config.architecture == "mobilenetv3_small_050"
    assert own.config.architecture == "resnet18" and own.config.model_kwargs["channels"] == SMALL["channels"]


# real runs


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_trains_both_networks_and_resumes(train_small, monkeypatch, beta):
    runs, setup, epoch = [], LBGAT.setup, Engine._train_epoch

    def watched(self, run):
        runs.append(run)
        self.start = copy.deepcopy(run.auxiliary_model.state_dict())
        setup(self, run)

    monkeypatch.setattr(LBGAT, "setup", watched)
    whole = train_small("lbgat", output="whole", method_args={"beta": beta})
    assert whole.history[-1]["train_natural_loss"] < whole.history[0]["train_natural_loss"]
    natural = runs[0].auxiliary_model.state_dict()
    state = torch.load(whole.output / "last/state.pt", weights_only=True)
    assert equal(state["auxiliary_model"], natural)
    assert weights(whole.output / "best", "").keys() == runs[0].unwrapped_model.model.state_dict().keys(), (
        "it is not shipped"
    )

    def killed_in_second(self):
        if self.epoch == 1:
            raise Killed
        return epoch(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed_in_second)
    with pytest.raises(Killed):
        train_small("lbgat", output="killed", method_args={"beta": beta})
    monkeypatch.setattr(Engine, "_train_epoch", epoch)
    resumed = train_small("lbgat", output="killed", method_args={"beta": beta}, resume=True)
    assert equal(weights(whole.output / "last", ""), weights(resumed.output / "last", ""))
    assert equal(natural, runs[-1].auxiliary_model.state_dict())
