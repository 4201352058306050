"""Attacks by name: what names mean, that each stays inside the threat, and what a model must be to be measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.attacks.l1 import PGDL1, project_l1
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import right, robust_correct_of
from timm_robust.evaluation.attack_spec import EXAMPLES, AttackSpec, parse_attack, torchattacks_names
from timm_robust.evaluation.attempts import attempts, margin
from timm_robust.evaluation.preconditions import output_warnings, require_deterministic, require_finite
from timm_robust.threat import EVALUATION_NORMS, Threat, make_threat

LINF, L2, L1 = Threat("Linf", 3 / 255, "3/255"), Threat("L2", 0.15, "0.15"), Threat("L1", 1.5, "1.5")

EVERYWHERE = ["fgsm", "pgd-5-2", "apgd-ce", "apgd-dlr", "apgd-t"]
BY_NORM = {
    "Linf": [*EVERYWHERE, "cw-linf", "torchattacks:MIFGSM", "torchattacks:Square:n_queries=300"],
    "L2": [*EVERYWHERE, "cw", "torchattacks:PGDL2:steps=5", "torchattacks:DeepFool:steps=5"],
    "L1": ["fgsm", "pgd-5-2", "apgd-ce", "apgd-t", "torchattacks:DeepFool:steps=5"],
}


def network(classes: int = 10) -> nn.Module:
    """A small network with large gradients, so that attacks break some images and not others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, classes))
    with torch.no_grad():
        model[-1].weight.mul_(8)
    return model.eval()


def labelled(model: nn.Module, n: int = 12):
    """Images that the model gets right, but for the first."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = model(images).argmax(1)
    targets[0] = (targets[0] + 1) % 2
    return images, targets


def size(delta: torch.Tensor, norm: str) -> torch.Tensor:
    flat = delta.double().flatten(1)
    return flat.norm(dim=1, p={"Linf": math.inf, "L2": 2, "L1": 1}[norm])


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_every_attack_stays_inside_the_ball_and_breaks_something(threat):
    model = network()
    images, targets = labelled(model)
    keep = images.clone()
    for name in BY_NORM[threat.norm]:
        measure = parse_attack(name)
        tries = attempts(measure, Attacker(model, threat), 10)
        torch.manual_seed(0)
        for attempt in tries:
            adversarial = attempt(images[1:], targets[1:])
            assert size(adversarial - images[1:], threat.norm).max() <= threat.eps * (1 + 1e-5), name
            assert adversarial.min() >= 0 and adversarial.max() <= 1, name
            assert not adversarial.requires_grad
        still_correct = robust_correct_of(model, images, targets, threat, measure, seed=1)
        assert not still_correct[0], "misclassified before any attack"
        assert still_correct[1:].float().mean() < 1, f"{name} breaks nothing"
        again = robust_correct_of(model, images, targets, threat, measure, seed=1)
        assert torch.equal(still_correct, again), f"{name} does not repeat"
    assert torch.equal(images, keep) and all(p.requires_grad for p in model.parameters())


def test_verdicts_leave_the_generator_alone():
    model = network()
    images, targets = labelled(model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name in ("apgd-ce", "torchattacks:Square:n_queries=5", "cw-linf"):
        robust_correct_of(model, images, targets, LINF, parse_attack(name))
    require_deterministic(model, images)
    assert torch.equal(torch.rand(3), expected)


def test_apgd_is_that_of_autoattack():
    """The same class with the same seed, by hand."""
    from pyautoattack.autopgd_base import APGDAttack

    model = network()
    images, targets = labelled(model)
    standing = images[1:], targets[1:]
    attempt = attempts(parse_attack("apgd-ce"), Attacker(model, LINF), 10)[0]
    torch.manual_seed(3)
    ours = attempt(*standing)
    torch.manual_seed(3)
    seed = int(torch.randint(2**31 - 1, ()))
    by_hand = APGDAttack(model, n_iter=100, norm="Linf", eps=LINF.eps, seed=seed, device="cpu").perturb(*standing)
    assert torch.allclose(ours, by_hand, atol=1e-6)
    assert (ours != standing[0]).any()


def test_cw_linf_climbs_the_margin_where_cross_entropy_has_saturated():
    """Logits times 10,000: the gradient of cross-entropy is zero, that of the margin is not."""

    class Hot(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x) * 1e4

    model = Hot().eval()
    images, targets = labelled(model)
    pgd = robust_correct_of(model, images, targets, LINF, parse_attack("pgd-20-1"))
    assert robust_correct_of(model, images, targets, LINF, parse_attack("cw-linf")).sum() < pgd.sum()


def test_margin():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]])
    assert margin(logits, torch.tensor([0, 2])).tolist() == [-0.5, 3.0]


def by_hand_l1(point: np.ndarray, clean: np.ndarray, eps: float) -> np.ndarray:
    """The projection by the sorted breakpoints of its piecewise linear equation, in float64."""
    delta = point - clean
    room = np.where(delta > 0, 1 - clean, clean)
    size = np.abs(delta)

    def total(t: float) -> float:
        return np.minimum(np.maximum(size - t, 0), room).sum()

    if total(0) <= eps:
        return clean + np.sign(delta) * np.minimum(size, room)
    breaks = np.unique(np.concatenate([[0], size, np.maximum(size - room, 0)]))
    after = next(i for i, t in enumerate(breaks) if total(t) <= eps)
    low, high = breaks[after - 1], breaks[after]
    share = (total(low) - eps) / (total(low) - total(high))
    t = low + share * (high - low)
    return clean + np.sign(delta) * np.minimum(np.maximum(size - t, 0), room)


def test_projection_onto_the_l1_ball_in_the_box():
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 4, 4, generator=draw).double()
    points = images + torch.randn(images.shape, generator=draw).double() * torch.logspace(-3, 1, 40).view(-1, 1, 1, 1)
    ours = project_l1(points, images, 2.0)
    for x, point, clean in zip(ours, points, images, strict=True):
        expected = by_hand_l1(point.flatten().numpy(), clean.flatten().numpy(), 2.0)
        assert np.abs(x.flatten().numpy() - expected).max() < 1e-9
    assert size(ours - images, "L1").max() <= 2 + 1e-9
    assert torch.equal(project_l1(images, images, 2.0), images)
    lost = points.clone()
    lost[0, 0, 0, 0] = math.nan
    assert project_l1(lost, images, 2.0).isfinite().all()


def test_pgd_l1_on_a_linear_network():
    """The most that L1 can do to a linear margin is to fill the pixels of largest weight, each up to the box."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    images, targets = torch.rand(20, 3, 8, 8), torch.zeros(20).long()
    weight = (linear[1].weight[1] - linear[1].weight[0]).detach().double()
    room = torch.where(weight > 0, 1 - images.flatten(1).double(), images.flatten(1).double())
    order = weight.abs().argsort(descending=True)
    filled = room[:, order].cumsum(1)
    spent = (room[:, order] - (filled - 3.0).clamp(min=0)).clamp(min=0)
    best = (spent * weight.abs()[order]).sum(1)
    view = Attacker(linear, L1).view
    adversarial = PGDL1(view, eps=3.0, alpha=0.75, steps=60)(images, targets)
    gained = (adversarial - images).flatten(1).double() @ weight
    assert (gained <= best + 1e-4).all() and (gained > 0.9 * best).all() and gained.sum() > 0.98 * best.sum()


def test_l1_is_for_evaluation():
    assert make_threat("l1", image_size=32, norms=EVALUATION_NORMS).eps == 12
    assert make_threat("L1", image_size=224, norms=EVALUATION_NORMS).eps == 60
    with pytest.raises(UserError, match="unknown norm 'L1'"):
        make_threat("L1", image_size=32)


def test_names():
    for name in [one for one in EXAMPLES if one.startswith(("clean", "apgd", "cw", "autoattack"))]:
        assert parse_attack(name.upper()) == AttackSpec(name)
    given = parse_attack("torchattacks:mifgsm:steps=20,decay=0.5,alpha=2/255")
    assert given.attack == "MIFGSM"
    assert dict(given.settings) == {"steps": 20, "decay": 0.5, "alpha": pytest.approx(2 / 255)}
    assert given.name.startswith("torchattacks:MIFGSM:steps=20,decay=0.5,alpha=")
    assert parse_attack(given.name) == given
    assert dict(parse_attack("torchattacks:Pixle:x_dimensions=(2,10),restarts=3").settings) == {
        "x_dimensions": (2, 10), "restarts": 3,
    }  # fmt: skip
    assert {"PGD", "CW", "Square", "JSMA"} <= set(torchattacks_names())
    assert not {"AutoAttack", "MultiAttack", "LGV"} & set(torchattacks_names())
    for name in torchattacks_names():
        assert parse_attack(f"torchattacks:{name}").attack == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchattacks:MIFGSN", "unknown attack of torchattacks 'MIFGSN': did you mean MIFGSM"),
        ("torchattacks:AutoAttack", "expected autoattack"),
        ("torchattacks:LGV", "unknown attack of torchattacks 'LGV'"),
        ("torchattacks:PGD:stepz=3", "unknown setting of torchattacks:PGD 'stepz': did you mean steps"),
        ("torchattacks:PGD:steps", "'steps' of torchattacks:PGD is no assignment: expected key=value"),
        ("torchattacks:PGD:eps=0.1", "'eps' of torchattacks:PGD is the threat's"),
        ("mifgsm", "did you mean torchattacks:MIFGSM"),
        ("apgd", "did you mean apgd-"),
        ("pgdx", "did you mean pgd"),
        ("autoatack", "did you mean autoattack"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UserError, match=message):
        parse_attack(name)


@pytest.mark.parametrize(
    ("name", "threat", "classes", "message"),
    [
        ("cw", LINF, 10, "cw minimises the L2 norm, the threat is Linf 3/255: use cw-linf"),
        ("cw-linf", L2, 10, "cw-linf moves in the norm Linf, the threat is L2 0.15: use cw"),
        ("torchattacks:MIFGSM", L2, 10, "torchattacks:MIFGSM moves in the norm Linf, .* use torchattacks:PGDL2"),
        ("torchattacks:PGDL2", LINF, 10, "moves in the norm L2, the threat is Linf 3/255: use torchattacks:PGD"),
        ("torchattacks:Square", L1, 10, "moves in the norm Linf or L2, the threat is L1 1.5: use apgd-ce"),
        ("apgd-dlr", LINF, 2, "apgd-dlr needs at least 3 classes, this model has 2: use apgd-ce"),
        ("apgd-t", LINF, 3, "apgd-t needs at least 4 classes, this model has 3: use apgd-dlr or apgd-ce"),
    ],
)
def test_what_a_threat_or_few_classes_do_not_allow(name, threat, classes, message):
    model = network(classes)
    images, targets = labelled(model, 4)
    with pytest.raises(UserError, match=message):
        robust_correct_of(model, images, targets, threat, parse_attack(name))


def test_the_step_keeps_its_proportion_to_the_radius(monkeypatch):
    seen = {}

    class Spy(torchattacks.PGD):
        def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True):
            super().__init__(model, eps, alpha, steps, random_start)
            seen.update(eps=eps, alpha=alpha, steps=steps)

    monkeypatch.setattr(torchattacks, "PGD", Spy)
    model = network()
    images, targets = labelled(model, 4)
    robust_correct_of(model, images, targets, LINF, parse_attack("torchattacks:PGD:steps=4"))
    assert seen == {"eps": LINF.eps, "alpha": pytest.approx(LINF.eps / 4), "steps": 4}


def test_an_attack_that_fails_is_one_sentence(monkeypatch):
    class Broken(torchattacks.PGD):
        def forward(self, images, labels):
            raise IndexError("too many indices\nsecond line")

    monkeypatch.setattr(torchattacks, "PGD", Broken)
    model = network()
    images, targets = labelled(model, 4)
    with pytest.raises(UserError, match="torchattacks:PGD failed on this model .*IndexError: too many indices$"):
        robust_correct_of(model, images, targets, LINF, parse_attack("torchattacks:PGD"))


def test_an_attack_that_leaves_the_ball_does_not_count(monkeypatch):
    """White images are misclassified, but they are not in the ball."""

    class Cheat(torchattacks.PGD):
        def forward(self, images, labels):
            return torch.full_like(images, math.nan)

    monkeypatch.setattr(torchattacks, "PGD", Cheat)
    model = network()
    images, targets = labelled(model)
    still_correct = robust_correct_of(model, images, targets, LINF, parse_attack("torchattacks:PGD"))
    assert still_correct.tolist() == [False] + [True] * 11


class Noisy(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.inner, self.scale = network(), scale

    def forward(self, x):
        logits = self.inner(x)
        return logits + self.scale * torch.randn_like(logits)


def test_random_outputs_are_refused():
    images, _ = labelled(network())
    with pytest.raises(UserError, match="the model is not deterministic: .* use autoattack-rand"):
        require_deterministic(Noisy(0.1).eval(), images)
    require_deterministic(network(), images)
    require_deterministic(Noisy(1e-7).eval(), images)  # rounding is not randomness


def test_lost_logits_are_refused_and_never_right():
    model = network()
    images, targets = labelled(model)
    require_finite(model, images)
    images = images.clone()
    images[7] = math.nan
    with pytest.raises(UserError, match="logits are nan for image 7: expected finite numbers"):
        require_finite(model, images, batch_size=5)
    assert not right(model(images), targets)[7]
    assert right(torch.tensor([[1.0, math.inf], [0.0, 1.0]]), torch.tensor([1, 1])).tolist() == [False, True]


def test_probabilities_are_warned_of():
    images, _ = labelled(network())
    assert output_warnings(network(), images) == []
    assert "softmax" in output_warnings(nn.Sequential(network(), nn.Softmax(1)).eval(), images)[0]
