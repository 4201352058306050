"""The guard, and each fact about torchattacks that it exists for."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import nn
from torchattacks.attack import Attack

from timm_robust.attacks.attacker import Attacker
from timm_robust.attacks.steps import project
from timm_robust.errors import UserError
from timm_robust.threat import Threat, make_threat

LINF = make_threat(image_size=8)


L2 = make_threat("L2", 0.5, image_size=8)


class Rude(Attack):
    """Leaves the ball, leaves [0, 1], returns NaN, and switches modes."""

    def __init__(self, model: nn.Module, value: float) -> None:
        super().__init__("Rude", model)
        self.value = value

    def forward(self, images, labels):
        self.model.train()
        return torch.full_like(images, self.value)


class Failing(Attack):
    def __init__(self, model: nn.Module) -> None:
        super().__init__("Failing", model)

    def forward(self, images, labels):
        raise RuntimeError("out of luck")


@pytest.mark.parametrize("value", [-3.0, 0.5, 7.0, float("nan"), float("inf")])
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_result_is_in_ball_and_range_whatever_the_attack_did(small_model, images, targets, value, threat):
    adversarial = Attacker(small_model, threat)(images, targets, Rude, value=value)
    delta = adversarial - images
    size = delta.abs().max() if threat.norm == "Linf" else delta.flatten(1).norm(dim=1).max()
    assert size <= threat.eps + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert adversarial.isfinite().all()


@pytest.mark.parametrize("name", ["fgsm", "ffgsm", "pgd", "apgd", "mifgsm"])
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_named_attacks_raise_the_loss(small_model, images, targets, name, threat):
    if name == "mifgsm" and threat is L2:
        pytest.skip("an Linf attack")
    small_model.eval()
    torch.manual_seed(0)
    settings = {"random_start": False} if name == "pgd" else {}
    adversarial = Attacker(small_model, threat)(images, targets, name, **settings)
    loss = nn.CrossEntropyLoss()
    assert loss(small_model(adversarial), targets) > loss(small_model(images), targets)


def test_zero_radius_is_identity(small_model, images, targets):
    nothing = Threat("Linf", 0.0, "0")
    assert torch.equal(Attacker(small_model, nothing)(images, targets, "pgd"), images)


@pytest.mark.parametrize("bn", ["eval", "train", "frozen"])
@pytest.mark.parametrize("attack", ["pgd", Failing])
def test_modes_and_requires_grad_come_back(small_model, images, targets, bn, attack):
    """torchattacks un-freezes frozen BatchNorm, and restores nothing after an exception."""
    small_model.train()
    frozen = next(m for m in small_model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    fixed = next(small_model.parameters()).requires_grad_(False)
    before = [(m.training, getattr(m, "track_running_stats", None)) for m in small_model.modules()]
    if attack is Failing:
        with pytest.raises(RuntimeError, match="out of luck"):
            Attacker(small_model, LINF)(images, targets, attack, bn=bn)
    else:
        Attacker(small_model, LINF)(images, targets, attack, bn=bn, steps=2)
    assert before == [(m.training, getattr(m, "track_running_stats", None)) for m in small_model.modules()]
    assert not frozen.training and not fixed.requires_grad
    assert all(p.requires_grad for p in small_model.parameters() if p is not fixed)


def test_torchattacks_alone_would_unfreeze(small_model, images, targets):
    """The fault the guard exists for; when this fails, torchattacks has mended it."""
    small_model.train()
    frozen = next(m for m in small_model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    torchattacks.PGD(small_model, steps=1)(images, targets)
    assert frozen.training


@pytest.mark.parametrize(("bn", "moves"), [("eval", False), ("train", True), ("frozen", False)])
def test_batchnorm_policy(small_model, images, targets, bn, moves):
    small_model.train()
    norm = next(m for m in small_model.modules() if isinstance(m, nn.BatchNorm2d))
    before, count = norm.running_mean.clone(), norm.num_batches_tracked.clone()
    Attacker(small_model, LINF)(images, targets, "pgd", bn=bn, steps=3)
    assert torch.equal(before, norm.running_mean) != moves
    assert (norm.num_batches_tracked - count).item() == (3 if moves else 0)


def test_no_weight_gradients(small_model, images, targets):
    Attacker(small_model, LINF)(images, targets, "pgd", bn="train")
    assert all(p.grad is None for p in small_model.parameters())


@pytest.mark.parametrize("name", ["apgd", "square", "fab"])
def test_reseeding_attacks_leave_the_global_generator(small_model, images, targets, name):
    """APGD, FAB and Square call torch.manual_seed on every batch: alone they would reset a training run's noise."""
    small_model.eval()
    settings = {"n_queries": 5} if name == "square" else {"steps": 2}
    torch.manual_seed(3)
    torch.randint(2**31 - 1, ())  # the guard draws the attack's seed
    expected = torch.rand(3)
    torch.manual_seed(3)
    Attacker(small_model, LINF)(images, targets, name, **settings)
    assert torch.equal(torch.rand(3), expected)


def test_reseeding_attacks_differ_between_batches(small_model, images, targets):
    small_model.eval()
    attacker = Attacker(small_model, LINF)
    torch.manual_seed(0)
    first, second = (attacker(images, targets, "apgd", steps=1) for _ in range(2))
    assert not torch.equal(first, second)


def test_channels_last_works_where_torchattacks_fails(small_model, images, targets):
    images = images.to(memory_format=torch.channels_last)
    small_model.to(memory_format=torch.channels_last)
    for threat in (LINF, L2):
        assert Attacker(small_model, threat)(images, targets, "pgd", steps=2).shape == images.shape


def test_attack_works_under_no_grad(small_model, images, targets):
    with torch.no_grad():
        adversarial = Attacker(small_model, LINF)(images, targets, "pgd", steps=2)
    assert not adversarial.requires_grad and not torch.equal(adversarial, images)


def test_bfloat16_keeps_radius(small_model, images, targets):
    """In bfloat16 tensors torchattacks' PGD ends 8.47/255 away; autocast keeps images in float32."""
    attacker = Attacker(small_model, LINF, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    adversarial = attacker(images, targets, "pgd")
    assert adversarial.dtype == torch.float32
    assert (adversarial - images).abs().max() <= LINF.eps + 1e-7


def test_gradient_scale_changes_nothing_in_float32(small_model, images, targets):
    small_model.eval()
    results = []
    for scale in (1.0, 2.0**10):
        torch.manual_seed(0)
        results.append(Attacker(small_model, LINF, gradient_scale=scale)(images, targets, "pgd", steps=3))
    assert torch.equal(*results)


def test_soft_labels(small_model, images):
    soft = torch.softmax(torch.rand(6, 10), 1)
    assert not torch.equal(Attacker(small_model, LINF)(images, soft, "pgd", steps=1), images)


@pytest.mark.parametrize("eps_multiplier", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_reach_is_the_balls_radius(small_model, images, targets, threat, eps_multiplier):
    images = images / 5 + 0.3  # far enough from 0 and 1
    settings = {} if eps_multiplier == 1 else {"eps_multiplier": eps_multiplier}
    delta = Attacker(small_model, threat)(images, targets, Rude, value=7.0, **settings) - images
    size = delta.abs().amax((1, 2, 3)) if threat.norm == "Linf" else delta.flatten(1).norm(dim=1)
    assert torch.allclose(size, torch.full((6,), eps_multiplier * threat.eps), rtol=1e-4)
    at_the_edge = project(torch.full_like(images, 7.0), images + 0.45, threat, eps_multiplier)
    assert at_the_edge.max() <= 1


class From(Attack):
    """Returns a shifted start, to see what reaches `forward`."""

    def __init__(self, model: nn.Module, eps: float) -> None:
        super().__init__("From", model)
        self.eps = eps

    def forward(self, images, labels, start, factor=1.0):
        return images + factor * start


def test_context_goes_to_the_attack(small_model, images, targets):
    attacker = Attacker(small_model, LINF)
    images, start = images * 0.5 + 0.2, torch.rand(images.shape) * LINF.eps
    for attack in (From, attacker.build(From)):
        assert torch.allclose(attacker(images, targets, attack, start), images + start)
        assert torch.allclose(attacker(images, targets, attack, start, 0.5, bn="train"), images + 0.5 * start)
    assert attacker.build(From) is attacker.build(From), "kept, so that it can be asked for what it found"
    assert attacker.build(From) is not attacker.build(From, eps=0.1)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("name", ["fgsm", "ffgsm", "pgd"])
def test_extra_steps_raise_the_loss_inside_the_ball(small_model, images, targets, name, threat):
    small_model.eval()
    losses, attacker = [], Attacker(small_model, threat)
    for extra in (0, 1, 3):
        attacker.extra_steps = extra
        torch.manual_seed(0)
        settings = {"steps": 1, "alpha": threat.eps / 10} if name == "pgd" else {}
        adversarial = attacker(images, targets, name, **settings)
        delta = adversarial - images
        size = delta.abs().max() if threat.norm == "Linf" else delta.flatten(1).norm(dim=1).max()
        assert size <= threat.eps + 1e-6 and adversarial.min() >= 0 and adversarial.max() <= 1
        assert not adversarial.requires_grad
        losses.append(nn.functional.cross_entropy(small_model(adversarial), targets).item())
    assert losses[0] < losses[1] < losses[2]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in small_model.parameters())


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_extra_steps_by_hand(images, targets, threat):
    """Steps of eps / 2 on cross-entropy, from where the attack ended."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 10)).double().eval()
    images, attacker = images.double(), Attacker(model, threat)
    expected = attacker(images, targets, "fgsm")
    attacker.extra_steps = 2
    found = attacker(images, targets, "fgsm")
    for _ in range(2):
        expected.requires_grad_(True)
        nn.functional.cross_entropy(model(expected).float(), targets).backward()
        gradient = expected.grad
        if threat.norm == "Linf":
            moved = expected.detach() + threat.eps / 2 * gradient.sign()
            moved = torch.maximum(torch.minimum(moved, images + threat.eps), images - threat.eps)
        else:
            moved = expected.detach() + threat.eps / 2 * torch.stack([g / g.norm() for g in gradient])
            delta = [d * min(1.0, threat.eps / d.norm().item()) for d in moved - images]
            moved = images + torch.stack(delta)
        expected = moved.clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("bn", "moves"), [("eval", False), ("frozen", False), ("train", True)])
def test_extra_steps_keep_the_batchnorm_policy(small_model, images, targets, bn, moves):
    attacker = Attacker(small_model, LINF)
    attacker.extra_steps = 2
    norm = next(module for module in small_model.modules() if isinstance(module, nn.BatchNorm2d))
    attacker(images, torch.softmax(torch.rand(6, 10), 1), "fgsm", bn=bn)
    assert norm.num_batches_tracked.item() == (3 if moves else 0) and norm.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, x, y: a(x, y, "pgdd"), r"unknown attack 'pgdd': did you mean .*pgd"),
        (lambda a, x, y: a(x, y, "pgd", bn="evall"), r"unknown BatchNorm policy 'evall': did you mean eval"),
        (lambda a, x, y: a(x, y, "pgd", step=3), r"unknown setting of attack PGD 'step': did you mean steps"),
    ],
)
def test_mistakes_are_named(small_model, images, targets, call, message):
    with pytest.raises(UserError, match=message):
        call(Attacker(small_model, LINF), images, targets)
