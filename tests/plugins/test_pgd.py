"""PGD and its early-stopped attack, against loops by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.pgd.friendly import EarlyStoppedPGD, patience
from torch import nn

from tests.support import EPS, network_and_images
from timm_robust.attacks.attacker import Attacker
from timm_robust.errors import UserError
from timm_robust.testing import Bench
from timm_robust.threat import make_threat

THREAT = make_threat(image_size=8)


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
    model, images, labels = network_and_images(tau)
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
