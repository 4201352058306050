"""MART, HAT, KD-SWA and LBGAT: their losses against formulas in float64 NumPy, where gradients flow, and real runs."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm_robust_plugins.hat.hat import HAT, hat_loss
from timm_robust_plugins.kd_swa.kd_swa import KDSWA, distillation_loss
from timm_robust_plugins.lbgat.lbgat import LBGAT, lbgat_loss
from timm_robust_plugins.mart.mart import GaussianStartPGD, mart_loss
from torch import nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.defense import Perturbed
from timm_robust.errors import UserError
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine

from .conftest import SMALL

EPS = 8 / 255
TARGETS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def fixed_logits(seed: int) -> np.ndarray:
    """8 x 10 logits of a usual size, with one image that is nearly certain of its label and one that is of another."""
    logits = 3 * np.random.default_rng(seed).standard_normal((8, 10))
    logits[0, 3] = logits[1, 7] = 20.0
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Targets are classes or soft labels."""
    labels = np.eye(logits.shape[1])[targets] if targets.ndim == 1 else targets
    return float(-(labels * np.log(softmax(logits))).sum(axis=1).mean())


def divergences(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """KL(p(x) || p(x')) of each image."""
    p, q = softmax(clean), softmax(adversarial)
    return (p * np.log(p / q)).sum(axis=1)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [
        torch.from_numpy(array).requires_grad_() if array.dtype == float else torch.tensor(array) for array in arrays
    ]


def differences(function, arrays: list[np.ndarray], number: int, places) -> list[float]:
    """Central differences of a float64 function in some entries of its argument `number`."""
    found = []
    for place in places:
        ends = []
        for shift in (1e-5, -1e-5):
            moved = [array.copy() for array in arrays]
            moved[number][place] += shift
            ends.append(function(*moved))
        found.append((ends[0] - ends[1]) / 2e-5)
    return found


PLACES = [(1, 2), (2, 4), (4, 5), (5, 9), (6, 0), (7, 7)]
"""Labels of their image, and others."""


def assert_gradients_are_those_of(expected, found, *arrays: np.ndarray) -> None:
    """Autograd of the tensor function `found` against differences of the NumPy function `expected`."""
    given = tensors(*arrays)
    found(*given).backward()
    for number, tensor in enumerate(given):
        slopes = differences(expected, list(arrays), number, PLACES)
        assert [tensor.grad[place].item() for place in PLACES] == pytest.approx(slopes, rel=1e-5, abs=1e-7)


def on(model: nn.Module, method: str, **options):
    """The method on a network of one's own, and a batch in float64."""
    bench = Bench.make(method, method_args=options)
    attacker = Attacker(model, bench.run.threat)
    bench.defense.run = replace(bench.run, model=model, unwrapped_model=model, attacker=attacker)
    return bench.defense, replace(bench.batch, images=bench.batch.images.double())


def curved() -> nn.Module:
    """A small smooth network on 16-pixel images, in float64."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 10)
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        model[0].weight.mul_(20)  # so that the loss bends within the ball
    return model


def noise(batch) -> Perturbed:
    """Some images in the ball: these tests need no attack."""
    torch.manual_seed(5)
    return Perturbed((batch.images + torch.empty_like(batch.images).uniform_(-EPS, EPS)).clamp(0, 1))


class Watched(nn.Module):
    """A network that notes what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, images):
        self.seen.append((images.detach().clone(), self.network.training, torch.is_grad_enabled()))
        return self.network(images)


# MART


def mart(clean: np.ndarray, adversarial: np.ndarray, beta: float = 5.0) -> float:
    """BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), with the released code's constants."""
    rows, attacked = np.arange(8), softmax(adversarial)
    second, first = np.argsort(attacked, axis=1)[:, -2:].T
    runner_up = np.where(first == TARGETS, second, first)
    boosted = -np.log(attacked[rows, TARGETS]) - np.log(1.0001 - attacked[rows, runner_up] + 1e-12)
    weights = 1.0000001 - softmax(clean)[rows, TARGETS]
    return float((boosted + beta * weights * divergences(clean, adversarial)).mean())


def our_mart(clean: torch.Tensor, adversarial: torch.Tensor, beta: float = 5.0) -> torch.Tensor:
    targets = torch.from_numpy(TARGETS)
    return mart_loss(F.cross_entropy(adversarial, targets), clean, adversarial, targets, beta=beta)


@pytest.mark.parametrize("beta", [0.0, 5.0, 6.0])
def test_mart_loss(beta):
    clean, adversarial = fixed_logits(0), fixed_logits(1)
    expected = mart(clean, adversarial, beta)
    exact = our_mart(*tensors(clean, adversarial), beta).item()
    single = our_mart(*(t.float() for t in tensors(clean, adversarial)), beta).item()
    assert exact == pytest.approx(expected, rel=1e-9)
    assert single == pytest.approx(expected, rel=1e-5)
    if beta:
        assert expected != pytest.approx(mart(adversarial, clean, beta), rel=1e-2), "the roles matter here"


def test_mart_takes_its_cross_entropy_from_the_caller():
    clean, adversarial, targets = *tensors(fixed_logits(0), fixed_logits(1)), torch.from_numpy(TARGETS)
    refined = softmax(fixed_logits(2))
    soft = F.cross_entropy(adversarial, torch.from_numpy(refined))
    found = mart_loss(soft, clean, adversarial, targets, beta=5.0).item()
    change = cross_entropy(fixed_logits(1), refined) - cross_entropy(fixed_logits(1), TARGETS)
    assert found == pytest.approx(mart(fixed_logits(0), fixed_logits(1)) + change, rel=1e-9)


def test_mart_detaches_nothing():
    """Neither the weight 1 - p_y(x) nor the clean prediction in the divergence."""
    assert_gradients_are_those_of(mart, our_mart, fixed_logits(0), fixed_logits(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mart_is_finite_in_half_precision_where_a_wrong_class_is_certain(dtype):
    clean, adversarial = (torch.from_numpy(fixed_logits(seed)).to(dtype).requires_grad_() for seed in (0, 1))
    loss = our_mart(clean, adversarial)
    loss.backward()
    rounded = [t.detach().double().numpy() for t in (clean, adversarial)]
    assert loss.item() == pytest.approx(mart(*rounded), rel=1e-2)
    assert clean.grad.isfinite().all() and adversarial.grad.isfinite().all()


def test_mart_attack_by_hand():
    model = curved()
    defense, batch = on(model, "mart", steps=3, step_ratio=0.5)
    torch.manual_seed(3)
    found = defense.perturb(batch).images
    torch.manual_seed(3)
    expected = (batch.images + 0.001 * torch.randn_like(batch.images)).clamp(0, 1)
    assert (expected - batch.images).abs().max() < 0.006, "not a point of the whole ball"
    for _ in range(3):
        expected = expected.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(expected).float(), batch.targets), expected)
        expected = expected.detach() + EPS / 2 * gradient.sign()
        expected = torch.minimum(torch.maximum(expected, batch.images - EPS), batch.images + EPS).clamp(0, 1)
    assert ((found - expected).abs() > 1e-9).double().mean() < 1e-3


def test_mart_attack_keeps_to_the_ball_without_the_guards_help():
    bench = Bench.make("pgd")
    images = bench.batch.images.mul(1.4).sub(0.2).clamp(0, 1)
    view = Attacker(bench.model, bench.run.threat).view
    found = GaussianStartPGD(view, eps=EPS, alpha=EPS, steps=2)(images, bench.batch.targets)
    assert (found - images).abs().max() <= EPS + 1e-6 and found.min() >= 0 and found.max() <= 1


def test_mart_smooths_only_the_cross_entropy():
    defense, batch = on(curved(), "mart")
    defense.run.recipe = replace(defense.run.recipe, label_smoothing=0.1)
    perturbed = noise(batch)
    smoothed = defense.loss(batch, perturbed)["loss"].item()
    defense.run.recipe = replace(defense.run.recipe, label_smoothing=0.0)
    plain = defense.loss(batch, perturbed)["loss"].item()
    logits = defense.run.model(perturbed.images).detach().numpy()
    labels = np.full((16, 10), 0.1 / 9)
    labels[np.arange(16), batch.targets.numpy()] = 0.9
    change = cross_entropy(logits, labels) - cross_entropy(logits, batch.targets.numpy())
    assert smoothed - plain == pytest.approx(change, rel=1e-6)


# HAT

HELPER_LABELS = np.array([3, 7, 4, 1, 0, 9, 2, 8])


def hat(clean: np.ndarray, adversarial: np.ndarray, helper: np.ndarray, beta: float = 2.5, gamma: float = 0.5) -> float:
    robust = cross_entropy(clean, TARGETS) + beta * divergences(clean, adversarial).mean()
    return float(robust + gamma * cross_entropy(helper, HELPER_LABELS))


def our_hat(clean, adversarial, helper, beta: float = 2.5, gamma: float = 0.5) -> torch.Tensor:
    loss, labels = F.cross_entropy(clean, torch.from_numpy(TARGETS)), torch.from_numpy(HELPER_LABELS)
    return hat_loss(loss, clean, adversarial, helper, labels, beta=beta, gamma=gamma)


@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 0.5), (3.5, 0.0), (0.0, 1.0)])
def test_hat_loss(beta, gamma):
    logits = [fixed_logits(seed) for seed in (0, 1, 2)]
    assert our_hat(*tensors(*logits), beta, gamma).item() == pytest.approx(hat(*logits, beta, gamma), rel=1e-12)
    assert_gradients_are_those_of(hat, our_hat, *logits)


@pytest.mark.parametrize("h", [2.0, 3.5])
def test_hat_helper_images_and_labels(h):
    """Helper images leave the pixel range; their labels are what the helper says of the adversarial images."""
    model = Watched(curved())
    defense, batch = on(model, "hat", h=h)
    helper = Watched(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).double().eval().requires_grad_(False))
    defense.run.teachers = {"helper": helper}
    batch = replace(batch, images=batch.images.mul(1.4).sub(0.2).clamp(0, 1))
    perturbed = noise(batch)
    output = defense.loss(batch, perturbed)

    clean, adversarial = batch.images, perturbed.images
    beyond = clean + h * (adversarial - clean)
    assert beyond.min() < 0 and beyond.max() > 1
    for images in (clean, adversarial, beyond):
        assert sum(torch.equal(given, images) for given, *_ in model.seen) == 1, "a forward of its own"
    ((shown, training, with_gradient),) = helper.seen
    assert torch.equal(shown, adversarial) and not training and not with_gradient

    labels = helper.network(adversarial).argmax(1).numpy()
    on_clean, on_adversarial, on_beyond = (model(x).detach().numpy() for x in (clean, adversarial, beyond))
    expected = cross_entropy(on_clean, batch.targets.numpy()) + 2.5 * divergences(on_clean, on_adversarial).mean()
    expected += 0.5 * cross_entropy(on_beyond, labels)
    assert output["loss"].item() == pytest.approx(expected, rel=1e-9)
    assert output["helper_fooled"].item() == pytest.approx((labels != batch.targets.numpy()).mean())


# KD-SWA


def distilled(logits: np.ndarray, teacher: np.ndarray, temperature: float = 2.0) -> float:
    """T^2 CE(z / T, softmax(t / T)), as the released code has it."""
    return temperature**2 * cross_entropy(logits / temperature, softmax(teacher / temperature))


def entropy(teacher: np.ndarray, temperature: float = 2.0) -> float:
    """What the released code's loss cannot fall below."""
    return distilled(teacher, teacher, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distillation_is_the_released_cross_entropy_less_the_teachers_entropy(temperature):
    student, teacher = fixed_logits(0), fixed_logits(1)
    logits, frozen = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)
    loss = distillation_loss(logits, frozen, temperature=temperature)
    assert loss.item() == pytest.approx(
        distilled(student, teacher, temperature) - entropy(teacher, temperature), rel=1e-9
    )
    loss.backward()
    ours = [logits.grad[place].item() for place in PLACES]
    slopes = differences(lambda z: distilled(z, teacher, temperature), [student], 0, PLACES)
    assert ours == pytest.approx(slopes, rel=1e-5, abs=1e-7)
    assert distillation_loss(frozen, frozen.clone(), temperature=temperature).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("weights", [(0.3, 0.1, 0.6), (1.0, 0.0, 0.0), (0.0, 1.0, 0.5)])
def test_kd_swa_loss_by_hand(weights):
    """Both teachers see the adversarial images, without a gradient."""
    names = ("label_weight", "natural_weight", "robust_weight")
    defense, batch = on(curved(), "kd-swa", temperature=3.0, **dict(zip(names, weights, strict=True)))
    teachers = {name: Watched(copy.deepcopy(curved())) for name in ("natural_teacher", "robust_teacher")}
    for shift, teacher in enumerate(teachers.values(), start=1):
        with torch.no_grad():
            teacher.network[0].weight.add_(0.3 * shift)
    defense.run.teachers = teachers
    perturbed = noise(batch)
    loss = defense.loss(batch, perturbed)["loss"]
    for teacher in teachers.values():
        ((shown, training, with_gradient),) = teacher.seen
        assert torch.equal(shown, perturbed.images) and not training and not with_gradient

    student, natural, robust = (
        network(perturbed.images).detach().numpy() for network in (defense.run.model, *teachers.values())
    )
    expected = weights[0] * cross_entropy(student, batch.targets.numpy())
    for weight, teacher in zip(weights[1:], (natural, robust), strict=True):
        expected += weight * (distilled(student, teacher, 3.0) - entropy(teacher, 3.0))
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(p.grad is None for teacher in teachers.values() for p in teacher.parameters())


def test_kd_swa_knows_l2():
    bench = Bench.make("kd-swa")
    threat = replace(bench.run.threat, norm="L2", eps=0.5)
    bench.defense.run = replace(bench.run, threat=threat, attacker=Attacker(bench.model, threat))
    length = (bench.step()[0].images - bench.batch.images).flatten(1).norm(dim=1)
    assert (length <= 0.5 + 1e-5).all() and (length > 0.3).all()


# LBGAT


def lbgat(natural: np.ndarray, clean: np.ndarray, adversarial: np.ndarray, beta: float = 6.0) -> float:
    distance = ((adversarial - natural) ** 2).sum() / natural.size
    return float(distance + cross_entropy(natural, TARGETS) + beta * divergences(clean, adversarial).mean())


def our_lbgat(natural, clean, adversarial, beta: float = 6.0) -> torch.Tensor:
    natural_loss = F.cross_entropy(natural, torch.from_numpy(TARGETS))
    return lbgat_loss(natural_loss, natural, clean, adversarial, beta=beta)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_loss(beta):
    logits = [fixed_logits(seed) for seed in (0, 1, 2)]
    assert our_lbgat(*tensors(*logits), beta).item() == pytest.approx(lbgat(*logits, beta), rel=1e-12)


def test_lbgat_moves_both_networks():
    """The natural logits are not detached in the distance."""
    logits = [fixed_logits(seed) for seed in (0, 1, 2)]
    assert_gradients_are_those_of(lbgat, our_lbgat, *logits)
    natural, clean, adversarial = tensors(*logits)
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
    perturbed = noise(bench.batch)
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


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("options", [{}, {"beta": 6.0, "steps": 2}])
def test_mart_trains(train_small, options):
    rows = train_small("mart", method_args=options, epochs=3).history
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[0]["train_adversarial_loss"] < rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("method", "cls", "made_by"),
    [
        ("hat", HAT, {"helper": "standard"}),
        ("kd-swa", KDSWA, {"natural_teacher": "standard", "robust_teacher": "pgd"}),
    ],
)
def test_teachers_are_trained_kept_frozen_and_used_again(train_small, monkeypatch, method, cls, made_by):
    runs, setup = [], cls.setup

    def watched(self, run):
        runs.append(run)
        setup(self, run)

    monkeypatch.setattr(cls, "setup", watched)
    first = train_small(method)
    assert first.history[-1]["train_loss"] < first.history[0]["train_loss"]
    (run,) = runs
    assert set(run.teachers) == set(made_by)
    for option, made in made_by.items():
        folder = first.output / option
        assert f'"method": "{made}"' in (folder / "best/model.json").read_text()
        teacher = run.teachers[option]
        assert not any(module.training for module in teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert equal(teacher.network.model.state_dict(), weights(folder / "best")), "nothing of it has moved"

    given = {option: str(first.output / option) for option in made_by}
    again = train_small(method, output="again", method_args=given)
    assert equal(weights(first.output / "last"), weights(again.output / "last"))
    assert not any((again.output / option).exists() for option in made_by)


class Killed(BaseException):
    """Not an Exception, like the end of a process."""


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_killed_while_its_teacher_is_trained_goes_on(train_small, monkeypatch, epoch):
    whole = train_small("hat", "whole")
    original = Engine._train_epoch

    def killed(self):
        if self.config.metadata["method"] == "standard" and self.epoch == epoch:
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed)
    with pytest.raises(Killed):
        train_small("hat", "killed")
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = train_small("hat", "killed", resume=True)
    assert equal(weights(whole.output / "last"), weights(resumed.output / "last"))


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
    assert equal(state["companion"], natural)
    assert weights(whole.output / "best").keys() == runs[0].unwrapped_model.model.state_dict().keys(), (
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
    assert equal(weights(whole.output / "last"), weights(resumed.output / "last"))
    assert equal(natural, runs[-1].auxiliary_model.state_dict())


@pytest.mark.parametrize("method", ["mart", "hat", "lbgat"])
def test_other_norms_are_refused(train_small, tmp_path, method):
    with pytest.raises(UserError, match=f"method '{method}' knows the norm Linf only, not L2"):
        train_small(method, norm="L2")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert not (tmp_path / "run/helper").exists(), "refused before a teacher is trained"
