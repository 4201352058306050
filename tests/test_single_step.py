"""The single-step methods against formulas written independently, and against training loops written by hand."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm_robust_plugins.atas.atas import CarriedStep, adaptive_step
from timm_robust_plugins.fgsm_mep.fgsm_mep import PriorFGSM, next_prior, soft_labels
from timm_robust_plugins.free.free import Free, free_update
from timm_robust_plugins.gat.gat import GuidedStep, squared_distance
from timm_robust_plugins.gradalign.gradalign import alignment_penalty, default_weight
from timm_robust_plugins.moat.moat import MOAT
from timm_robust_plugins.moat.stages import mean_cost, parse_stages, period
from timm_robust_plugins.nuat.nuat import nuclear_distance
from timm_robust_plugins.seat.seat import LinearityStep, linearity_residual, margin, seat_loss, slope
from timm_robust_plugins.zerograd.multigrad import MultiGradFGSM
from timm_robust_plugins.zerograd.zerograd import ZeroGradFGSM, without_smallest
from torch import nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.defense import Perturbed
from timm_robust.errors import UserError
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine
from timm_robust.training.pass_counter import PassCounter

EPS = 8 / 255


def curved(classes: int = 10) -> nn.Module:
    """A small smooth network on 16-pixel images, in float64."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, classes)
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        model[0].weight.mul_(20)  # so that the loss bends within the ball
    return model


def linear(classes: int = 2) -> nn.Module:
    """Two classes: then the gradient's direction is the same at every image, for a label."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, classes)).double().eval()


def on(model: nn.Module, method: str, **options):
    """The method on a network of one's own, and a batch in float64."""
    bench = Bench.make(method, method_args=options)
    attacker = Attacker(model, bench.run.threat)
    bench.defense.run = replace(bench.run, model=model, unwrapped_model=model, attacker=attacker)
    batch = replace(bench.batch, images=bench.batch.images.double())
    if list(model.parameters())[-1].shape[0] == 2:
        batch = replace(batch, targets=batch.targets % 2)
    return bench.defense, batch


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each image; targets are classes or soft labels."""
    labels = np.eye(logits.shape[1])[targets] if targets.ndim == 1 else targets
    return -(labels * np.log(softmax(logits))).sum(axis=1)


def input_gradient(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each image's own loss, at logits of float32 as the guard gives them."""
    points = images.detach().clone().requires_grad_(True)
    F.cross_entropy(model(points).float(), targets, reduction="sum").backward()
    model.zero_grad()
    return points.grad


def into_ball(images: torch.Tensor, clean: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    return torch.minimum(torch.maximum(images, clean - eps), clean + eps).clamp(0, 1)


def parameter_gradient(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# SEAT


@pytest.mark.parametrize("sigma", [1, -1])
def test_seat_gradient_identity(sigma):
    """(1 + 0.6 sigma) grad L(x') - 0.6 sigma grad L(x), sigma the sign of L(x') - L(x) - s; no double backward."""
    bench = Bench.make("seat")
    model = bench.model.double()
    batch = replace(bench.batch, images=bench.batch.images.double())
    adversarial = bench.defense.perturb(batch).images
    slopes = torch.linspace(-0.1, 0.3, 16).double() - sigma  # the predicted change is too small, or too large
    clean_loss = F.cross_entropy(model(batch.images), batch.targets)
    loss = F.cross_entropy(model(adversarial), batch.targets)
    assert torch.sign(loss - clean_loss - slopes.mean()) == sigma
    at_clean, at_adversarial = parameter_gradient(clean_loss, model), parameter_gradient(loss, model)
    expected = (1 + 0.6 * sigma) * at_adversarial - 0.6 * sigma * at_clean
    found = parameter_gradient(bench.defense.loss(batch, Perturbed(adversarial, {"slopes": slopes}))["loss"], model)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, at_adversarial, rtol=1e-2)


def seat_values() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses at both ends and slopes; residuals of either sign."""
    clean, adversarial = np.random.default_rng(0).uniform(0, 3, (2, 8))
    return clean, adversarial, adversarial - clean - np.linspace(-1.0, 1.4, 8)


@pytest.mark.parametrize("per_sample", [False, True])
def test_seat_residual(per_sample):
    """The batch's residual lets signs cancel, each sample's does not."""
    clean, adversarial, slopes = seat_values()
    residuals = adversarial - clean - slopes
    expected = np.abs(residuals).mean() if per_sample else abs(residuals.mean())
    found = linearity_residual(*map(torch.from_numpy, (clean, adversarial, slopes)), per_sample=per_sample)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert np.abs(residuals).mean() > 1.5 * abs(residuals.mean()), "the two differ here"


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_seat_residual_of_a_linear_loss_is_zero(per_sample, bend):
    torch.manual_seed(0)
    weight, images, delta = torch.randn(8, 3, 4, 4).double(), torch.rand(8, 3, 4, 4).double(), torch.randn(8, 3, 4, 4)

    def losses(x):
        return (weight * x).flatten(1).sum(1) + bend * x.square().flatten(1).sum(1)

    gradient = weight + 2 * bend * images
    residual = linearity_residual(
        losses(images), losses(images + delta), slope(delta, gradient), per_sample=per_sample
    ).item()
    quadratic = bend * delta.double().square().flatten(1).sum(1).mean().item()
    assert residual == pytest.approx(quadratic, abs=1e-12)


@pytest.mark.parametrize(("flood", "sign"), [(0.0, 1), (0.5, 1), (2.5, -1)])
def test_seat_flooding(flood, sign):
    """|L - b| + b turns the gradient of the adversarial loss around below b, and leaves the residual's."""
    clean, adversarial, slopes = map(torch.from_numpy, seat_values())
    level = adversarial.mean().item()
    assert 0.5 < level < 2.5
    adversarial.requires_grad_(True)
    settings = {"flood": flood, "per_sample": False}
    loss = seat_loss(clean, adversarial, slopes, weight=0.0, **settings)
    assert loss.item() == pytest.approx(abs(level - flood) + flood, rel=1e-12)
    loss.backward()
    assert torch.allclose(adversarial.grad, torch.full((8,), sign / 8).double())
    residual = abs((adversarial - clean - slopes).mean().item())
    whole = seat_loss(clean, adversarial, slopes, weight=0.6, **settings)
    assert whole.item() == pytest.approx(abs(level - flood) + flood + 0.6 * residual, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_seat_margin(classes):
    random = np.random.default_rng(classes)
    logits, targets = 4 * random.standard_normal((12, classes)), random.integers(0, classes, 12)
    logits[0, targets[0]] = 60.0  # certain and right: no wrong probability is above 0
    p = softmax(logits)
    expected = np.mean([max(np.delete(p[i], t)) - p[i, t] for i, t in enumerate(targets)])
    assert margin(torch.from_numpy(logits), torch.from_numpy(targets)).item() == pytest.approx(expected, rel=1e-12)


def test_seat_slopes_go_with_their_sample():
    """Whatever the order, or the company."""
    defense, batch = on(curved(), "seat", attack_bn="eval", noise_ratio=0.0)
    slopes = defense.perturb(batch).extras["slopes"]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    for rows in (order, torch.arange(5)):
        part = replace(batch, images=batch.images[rows], targets=batch.targets[rows])
        assert torch.allclose(defense.perturb(part).extras["slopes"], slopes[rows], rtol=1e-5)
    assert slopes.std() > 0


@pytest.mark.parametrize("bn", ["train", "eval"])
def test_seat_reuses_the_clean_gradient(bn):
    """The released code computes it again before the loss; in train mode the batch's statistics are the same."""
    bench = Bench.make("seat", method_args={"attack_bn": bn})
    perturbed = bench.defense.perturb(bench.batch)
    bench.model.train(bn == "train")
    gradient = input_gradient(bench.model, bench.batch.images, bench.batch.targets)
    expected = ((perturbed.images - bench.batch.images).double() * gradient.double()).flatten(1).sum(1)
    assert torch.allclose(perturbed.extras["slopes"].double(), expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().min() > 1e-4


@pytest.mark.parametrize("attack_loss", ["margin", "ce"])
def test_seat_attack_by_hand(attack_loss):
    model = curved()
    defense, batch = on(model, "seat", attack_bn="eval", attack_loss=attack_loss)
    torch.manual_seed(3)
    found = defense.perturb(batch).images

    torch.manual_seed(3)
    start = (batch.images + EPS * (2 * torch.empty_like(batch.images).bernoulli_(0.5) - 1)).clamp(0, 1)
    gradient = input_gradient(model, batch.images, batch.targets) / 16  # of the batch mean
    s = ((start - batch.images) * gradient).sum().item()
    start.requires_grad_(True)
    logits, rows = model(start).float(), torch.arange(16)
    p = logits.softmax(1)
    others = (p - 1000 * F.one_hot(batch.targets, 10)).max(1).values
    loss = F.cross_entropy(logits, batch.targets)
    objective = (others - p[rows, batch.targets]).mean() if attack_loss == "margin" else loss
    clean_loss = F.cross_entropy(model(batch.images).float(), batch.targets).item()
    (ascent,) = torch.autograd.grad(objective + 0.6 * (loss - clean_loss - s).abs(), start)
    expected = into_ball(start.detach() + EPS * ascent.sign(), batch.images)
    assert (found - expected).abs().max() < 1e-9
    plain = torch.autograd.grad(F.cross_entropy(model(start).float(), batch.targets), start)[0].sign()
    assert attack_loss == "ce" or not torch.equal(plain, ascent.sign())


def test_seat_fl_differs_by_its_flood_alone():
    seat, flooded = (Bench.make(name).defense.options for name in ("seat", "seat-fl"))
    assert (seat.flood, flooded.flood) == (0.0, 1.0)
    assert replace(flooded, flood=0.0) == replace(flooded, **vars(seat))


# ATAS


@pytest.mark.parametrize(
    ("c", "low", "high", "root", "step"),
    [
        (0.01, 4, 14, 0.0, 14),
        (0.01, 4, 14, 0.00142857, 14),
        (0.01, 4, 14, 0.01, 8),
        (0.01, 4, 14, 0.03, 4),
        (0.01, 4, 14, 1.0, 4),
        (0.1, 4, 8, 0.05, 8),
        (0.1, 4, 8, 0.1, 8),
        (0.1, 4, 8, 0.3, 4),
    ],
)
def test_atas_step_at_the_released_codes_clamp_points(c, low, high, root, step):
    """There sqrt(v) is of the mean's gradient over 128 images: ours is 128 times as large, and so is the constant."""
    average = torch.tensor([(128 * root) ** 2], dtype=torch.float64)
    found = adaptive_step(average, soft_norm=128 * c, numerator=16 / 255, low=low / 255, high=high / 255)
    assert found.item() * 255 == pytest.approx(step, rel=1e-6)


def test_atas_step_against_the_formula():
    norms = np.geomspace(1e-3, 100, 50)
    expected = np.clip((16 / 255) / (1 + norms / 128 / 0.01), 4 / 255, 14 / 255)
    average = torch.from_numpy(norms**2)
    found = adaptive_step(average, soft_norm=1.28, numerator=16 / 255, low=4 / 255, high=14 / 255)
    assert np.allclose(found.numpy(), expected, rtol=1e-12)
    assert (np.diff(expected) < 0).sum() > 10, "not all at an end"


@pytest.mark.parametrize(("size", "rule"), [(32, (1.28, 14 / 255, 40)), (224, (12.8, 8 / 255, 32))])
def test_atas_takes_the_constants_of_the_image_size(size, rule):
    bench = Bench.make("atas")
    bench.defense.setup(replace(bench.run, image_size=size, frame_size=size + 8, num_train=2))
    found = bench.defense.rule
    assert (found["soft_norm"], found["high"], bench.defense.stored.values.shape[-1]) == pytest.approx(rule)
    assert found["numerator"] == 16 / 255 and found["low"] == 4 / 255


def adaptive_atas(**options):
    """ATAS after its warm-up, with stored perturbations that lose nothing."""
    defense, batch = on(curved(), "atas", table_dtype="float32", **options)
    defense.on_epoch_start(5)
    assert defense.adaptive
    return defense, batch


def test_atas_does_not_depend_on_the_batch_size():
    defense, batch = adaptive_atas()
    attack = defense.run.attacker.build(CarriedStep, decay=0.5, **defense.rule)
    whole = defense.perturb(batch)
    steps, images = attack.step, []
    for rows in torch.arange(16).split(4):
        view = type(batch.view)(*(v[rows] for v in vars(batch.view).values()))
        fields = (batch.images[rows], batch.targets[rows], batch.index[rows], view)
        images.append(defense.perturb(type(batch)(*fields)).images)
        assert torch.allclose(attack.step, steps[rows], rtol=1e-5)
        assert torch.allclose(attack.average, whole.extras["average"][rows], rtol=1e-5)
    assert torch.allclose(torch.cat(images), whole.images, atol=1e-6)
    assert len(set(steps.tolist())) > 8, "steps differ from sample to sample"


def test_atas_averages():
    """v <- v / 2 + |g|^2 / 2, g the gradient of the sample's own loss at the start; untouched by the warm-up."""
    model = curved()
    defense, batch = on(model, "atas", table_dtype="float32")
    v = np.zeros(16)
    for epoch in (0, 4, 5, 6):
        defense.on_epoch_start(epoch)
        perturbed = defense.perturb(batch)
        carried = perturbed.extras["frames"]
        start = []
        for i, (top, left) in enumerate(zip(batch.view.top.tolist(), batch.view.left.tolist(), strict=True)):
            window = carried[i, :, top : top + 16, left : left + 16]
            start.append(window.flip(2) if batch.view.flip[i] else window)
        start = (batch.images + torch.stack(start)).clamp(0, 1)
        gradient = input_gradient(model, start, batch.targets)
        steps = np.full(16, EPS)
        if epoch >= 5:
            v = 0.5 * v + 0.5 * (gradient.flatten(1).numpy() ** 2).sum(axis=1)
            steps = np.clip((16 / 255) / (1 + np.sqrt(v) / 1.28), 4 / 255, 14 / 255)
        expected = into_ball(start + torch.from_numpy(steps).view(-1, 1, 1, 1) * gradient.sign(), batch.images)
        assert torch.allclose(perturbed.images, expected, atol=1e-6)
        assert perturbed.extras["step"].item() == pytest.approx(steps.mean(), rel=1e-4)
        assert epoch < 5 or steps.std() > 0
        defense.commit(batch, perturbed, {})
        assert np.allclose(defense.averages[batch.index].numpy(), v, rtol=1e-5)
    assert v.min() > 0


def test_atas_stores_what_it_found_in_the_window_alone():
    defense, batch = adaptive_atas()
    before = defense.stored.values.clone()
    perturbed = defense.perturb(batch)
    defense.commit(batch, perturbed, {})
    found = (perturbed.images - batch.images).float()
    assert batch.view.flip.any() and not batch.view.flip.all()
    for i in range(16):
        top, left = batch.view.top[i].item(), batch.view.left[i].item()
        expected = before[i].clone()
        expected[:, top : top + 16, left : left + 16] = found[i].flip(2) if batch.view.flip[i] else found[i]
        assert torch.equal(defense.stored.values[i], expected)
        assert not torch.equal(expected, before[i])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_atas_round_trip_changes_nothing_where_nothing_is_added(dtype):
    defense, batch = on(curved(), "atas", table_dtype=dtype)
    before = defense.stored.values.clone()
    frames = defense.stored[batch.index]
    views = zip(batch.view.top.tolist(), batch.view.left.tolist(), batch.view.flip.tolist(), strict=True)
    windows = [
        frames[i, :, top : top + 16, left : left + 16].flip(2 if flip else ())
        for i, (top, left, flip) in enumerate(views)
    ]
    images = batch.images + torch.stack(windows).double()
    defense.commit(batch, Perturbed(images, {"frames": frames, "average": torch.zeros(16)}), {})
    assert torch.allclose(defense.stored.values.float(), before.float(), atol=1e-8 if dtype == "float32" else 1e-6)


@pytest.mark.parametrize(("epochs", "expected"), [(30, [10, 20]), (25, [10, 20]), (10, []), (31, [10, 20, 30])])
def test_atas_draws_anew_every_ten_epochs_but_not_for_the_last(epochs, expected):
    defense, _ = on(curved(), "atas")
    defense.run = replace(defense.run, epochs=epochs)
    defense.averages.fill(3.0)
    seen, drawn = [], []
    for epoch in range(epochs):
        defense.stored.fill(0.0)
        defense.on_epoch_start(epoch)
        if defense.stored.values.any():
            seen.append(epoch + 1)
            drawn.append(defense.stored.values.clone())
            assert 0.9 * EPS < drawn[-1].abs().max() < 1.001 * EPS
    assert seen == expected
    assert len(drawn) < 2 or not torch.equal(drawn[0], drawn[1])
    assert (defense.averages.values == 3.0).all()


def test_atas_without_carrying_keeps_its_noise():
    defense, batch = adaptive_atas(carry=False)
    before = defense.stored.values.clone()
    defense.commit(batch, defense.perturb(batch), {})
    assert torch.equal(before, defense.stored.values)
    assert (defense.averages.values > 0).all()


def test_atas_at_low_resolution():
    """What was found comes back at half the resolution: a block of equal pixels as it was, its edge blurred."""
    defense, batch = adaptive_atas(stored_size=10)
    assert defense.stored.values.shape == (16, 3, 10, 10)
    defense.stored.fill(0.0)
    view = replace(batch.view, top=torch.full((16,), 4), left=torch.full((16,), 2))
    batch = replace(batch, view=view)
    perturbed = replace(defense.perturb(batch), images=batch.images + EPS)
    defense.commit(batch, perturbed, {})
    expected = torch.zeros(10, 10)
    expected[2:10, 1:9] = EPS
    assert torch.allclose(defense.stored.values, expected.expand(16, 3, 10, 10), atol=1e-7)
    again = defense.perturb(batch).extras["frames"]
    assert again.shape == (16, 3, 20, 20)
    assert torch.allclose(again[:, :, 5:19, 3:17], torch.tensor(EPS), atol=1e-7) and again.min() >= 0
    assert again[:, :, :3].abs().max() == 0


def test_atas_refuses_crops_of_random_size(train_small, tmp_path):
    with pytest.raises(UserError, match="'inception' does not allow: pass --set augment=crop-flip"):
        train_small("atas", recipe_args={"augment": "inception"})
    assert not (tmp_path / "run/metrics.jsonl").exists()


# FGSM, FGSM-RS, N-FGSM


def test_fgsm_is_one_full_step_from_the_image():
    model = curved()
    defense, batch = on(model, "fgsm", attack_bn="eval")
    expected = (batch.images + EPS * input_gradient(model, batch.images, batch.targets).sign()).clamp(0, 1)
    assert torch.allclose(defense.perturb(batch).images, expected, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0, 3.0])
def test_n_fgsm_by_hand(noise):
    model = curved()
    defense, batch = on(model, "n-fgsm", attack_bn="eval", noise_ratio=noise)
    torch.manual_seed(3)
    found = defense.perturb(batch).images
    torch.manual_seed(3)
    noisy = (batch.images + torch.empty_like(batch.images).uniform_(-noise * EPS, noise * EPS)).clamp(0, 1)
    expected = (noisy + EPS * input_gradient(model, noisy, batch.targets).sign()).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-9)
    far = (found - batch.images).abs().max().item() / EPS
    assert far <= 1 + noise + 1e-6 and (noise == 0 or far > 1.2)
    assert found.min() >= 0 and found.max() <= 1


def test_fgsm_rs_stays_in_the_ball():
    defense, batch = on(curved(), "fgsm-rs", attack_bn="eval", step_ratio=3.0)
    far = (defense.perturb(batch).images - batch.images).abs().max().item()
    assert 0.999 * EPS < far <= EPS + 1e-6


# free adversarial training


def test_free_update():
    """The signed step of the clipped sum's gradient, which a pixel that was clipped does not have."""
    random = np.random.default_rng(0)
    images, delta, gradient = random.uniform(0, 1, (3, 4, 3, 5, 5))
    delta = (2 * delta - 1) * EPS
    gradient -= 0.5
    images[:, :, 0], images[:, :, 1] = 0.0, 1.0
    expected = delta + EPS * np.sign(np.where((images + delta < 0) | (images + delta > 1), 0, gradient))
    found = free_update(*map(torch.from_numpy, (delta, gradient, images)), step=EPS, eps=EPS)
    assert np.allclose(found.numpy(), np.clip(expected, -EPS, EPS), atol=1e-15)


@pytest.fixture
def free_run(train_small, monkeypatch):
    """A small run of free training with three replays: batches as they came, perturbations before and after each."""
    seen = SimpleNamespace(batches=[], before=[], after=[], start=None, updates=0, lengths=[])
    perturb, commit, update = Free.perturb, Free.commit, Engine._update

    def watched_perturb(self, batch):
        if seen.start is None:
            seen.start = copy.deepcopy(self.run.unwrapped_model)
        seen.batches.append(batch)
        seen.before.append(self.delta.clone())
        return perturb(self, batch)

    def watched_commit(self, batch, perturbed, output):
        commit(self, batch, perturbed, output)
        seen.after.append(self.delta.clone())

    def watched_update(self, clip):
        seen.updates += 1
        seen.lengths.append(self.schedule._torch.total_steps)
        update(self, clip)

    monkeypatch.setattr(Free, "perturb", watched_perturb)
    monkeypatch.setattr(Free, "commit", watched_commit)
    monkeypatch.setattr(Engine, "_update", watched_update)
    recipe = {"optimizer": "momentum", "schedule": "onecycle", "lr": 0.02, "check_attack": "pgd-1-1"}
    seen.result = train_small("free", batch_size=100, method_args={"replays": 3}, recipe_args=recipe, epochs=2)
    return seen


def test_free_takes_several_steps_on_each_batch(free_run):
    assert [len(b) for b in free_run.batches] == 2 * ([100] * 6 + [70] * 3)
    assert free_run.updates == 18 and set(free_run.lengths) == {18}, "the schedule counts replays"
    for start in range(0, 18, 3):
        same = free_run.batches[start : start + 3]
        assert all(b is same[0] for b in same)
    assert not torch.equal(free_run.batches[0].index, free_run.batches[3].index)
    assert [row["passes"] for row in free_run.result.history] == [3.0, 3.0]


def test_free_perturbation_is_carried_to_the_next_batch_and_epoch(free_run):
    assert not free_run.before[0].any()
    assert all(torch.equal(a, b) for a, b in zip(free_run.after, free_run.before[1:], strict=False))
    assert all(after.abs().max() == np.float32(EPS) for after in free_run.after)
    last = [i for i, b in enumerate(free_run.batches) if len(b) == 70]
    assert len(last) == 6
    for i in last:
        assert torch.equal(free_run.before[i][70:], free_run.after[i][70:]), "a smaller batch leaves the last rows"
        assert not torch.equal(free_run.before[i][:70], free_run.after[i][:70])


def test_free_equals_a_loop_by_hand(free_run):
    """Shafahi et al., algorithm 1: one backward gives the weights' gradient and the perturbation's."""
    model = free_run.start.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=18)
    delta = torch.zeros(100, 3, 8, 8, requires_grad=True)
    for batch in free_run.batches[::3]:
        for _ in range(3):
            optimizer.zero_grad()
            delta.grad = None
            images = batch.images + delta[: len(batch)]
            # not clamp: some versions of torch give a pixel that is exactly 0 or 1 no gradient
            images = torch.where(images < 0, 0.0, torch.where(images > 1, 1.0, images))
            F.cross_entropy(model(images), batch.targets).backward()
            optimizer.step()
            delta.data = (delta.data + EPS * delta.grad.sign()).clamp(-EPS, EPS)
            if schedule.last_epoch < 17:
                schedule.step()
    state = model.model.state_dict()
    for name, value in load_file(free_run.result.output / "last/model.safetensors").items():
        assert torch.allclose(state[name].float(), value.float(), rtol=1e-5, atol=1e-6), name
    assert torch.allclose(free_run.after[-1], delta.detach(), atol=1e-6)


# FGSM-MEP


def test_mep_soft_labels():
    labels = soft_labels(torch.tensor([2, 0]), 5, 0.4)
    assert torch.allclose(labels, torch.tensor([[0.1, 0.1, 0.6, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1, 0.1]]))
    assert torch.allclose(soft_labels(torch.arange(7), 100, 0.4).sum(1), torch.ones(7))


def test_mep_next_prior():
    random = np.random.default_rng(0)
    prior, momentum, gradient = random.standard_normal((3, 4, 3, 5, 5))
    prior = np.clip(prior * EPS, -EPS, EPS)
    expected = gradient + 0.3 * momentum
    delta, moved = next_prior(*map(torch.from_numpy, (prior, momentum, gradient)), decay=0.3, step=EPS, eps=EPS)
    assert np.allclose(moved.numpy(), expected, rtol=1e-12)
    assert np.allclose(delta.numpy(), np.clip(prior + EPS * np.sign(expected), -EPS, EPS), atol=1e-15)


def test_mep_by_hand():
    """Three visits of a batch, in the released code's units: the momentum's gradient has L1 norm 1 over the batch."""
    model = curved()
    defense, batch = on(model, "fgsm-mep", attack_bn="eval", table_dtype="float32")
    labels = np.full((16, 10), 0.4 / 9)
    labels[np.arange(16), batch.targets] = 0.6
    prior, momentum = defense.priors.values.numpy().astype(np.float64), np.zeros((16, 3, 16, 16))
    assert set(np.abs(prior).ravel()) == {np.float64(np.float32(EPS))} and 0.4 < (prior > 0).mean() < 0.6
    clean = batch.images.numpy()
    for _ in range(3):
        start = torch.from_numpy(clean + prior).clamp(0, 1).requires_grad_(True)
        start_logits = model(start)
        (gradient,) = torch.autograd.grad(F.cross_entropy(start_logits.float(), torch.from_numpy(labels)), start)
        gradient = gradient.numpy()
        images = np.clip(clean + np.clip(prior + EPS * np.sign(gradient), -EPS, EPS), 0, 1)
        perturbed = defense.perturb(batch)
        assert np.allclose(perturbed.images.numpy(), images, atol=1e-6)

        logits, start_logits = model(torch.from_numpy(images)).detach().numpy(), start_logits.detach().numpy()
        distance = ((logits - start_logits) ** 2).mean()
        output = defense.loss(batch, perturbed)
        assert output["distance"].item() == pytest.approx(distance, rel=1e-4)
        expected = cross_entropy(logits, labels).mean() + 10 * distance
        assert output["loss"].item() == pytest.approx(expected, rel=1e-4)

        defense.commit(batch, perturbed, output)
        momentum = gradient / np.abs(gradient).sum() + 0.3 * momentum
        prior = np.clip(prior + EPS * np.sign(momentum), -EPS, EPS)
        assert (np.abs(defense.priors.values.numpy() - prior) > 1e-6).mean() < 1e-3
        scale = defense.run.recipe.batch_size * 3 * 16 * 16
        assert np.allclose(defense.momenta.values.numpy(), scale * momentum, rtol=1e-3, atol=1e-4)
        prior = defense.priors.values.numpy().astype(np.float64)


def test_mep_gradient_flows_through_both_ends():
    model = curved()
    defense, batch = on(model, "fgsm-mep", attack_bn="eval", smoothing=0.4)
    perturbed = defense.perturb(batch)
    images, start = perturbed.images, (batch.images + perturbed.extras["prior"]).clamp(0, 1)
    logits, start_logits = model(images), model(start)
    loss = F.cross_entropy(logits, perturbed.extras["labels"].double()) + 10 * (logits - start_logits).square().mean()
    expected = parameter_gradient(loss, model)
    found = parameter_gradient(defense.loss(batch, perturbed)["loss"], model)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_mep_starts_anew_every_forty_epochs():
    defense, _ = on(curved(), "fgsm-mep")
    seen = []
    for epoch in range(100):
        defense.priors.fill(0.0)
        defense.momenta.fill(1.0)
        defense.on_epoch_start(epoch)
        if defense.priors.values.any():
            seen.append(epoch)
        assert defense.momenta.values.any() == (epoch not in (0, 40, 80))
    assert seen == [0, 40, 80]


def test_mep_prior_may_not_be_out_of_the_ball():
    defense, batch = on(curved(), "fgsm-mep", attack_bn="eval", step_ratio=4.0)
    assert defense.priors.values.abs().max() <= 1.001 * EPS
    raw = PriorFGSM(defense.run.attacker.view, EPS, 4 * EPS)
    images = raw(batch.images, batch.targets, defense.priors[batch.index])
    assert (images - batch.images).abs().max() <= EPS + 1e-9


# GradAlign


def test_gradalign_weights_are_the_released_table():
    table = [27, 36, 47, 63, 84, 112, 150, 200, 267, 356, 474, 632, 843, 1124, 1500, 2000]
    assert [default_weight(i / 255) for i in range(1, 17)] == pytest.approx([w / 1000 for w in table], abs=7e-4)


def test_gradalign_penalty_leaves_out_samples_without_a_gradient():
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 6, 3, 4, 4))
    one[1], other[4] = 0, 0
    a, b = one.reshape(6, -1), other.reshape(6, -1)
    kept = [0, 2, 3, 5]
    cosines = [a[i] @ b[i] / np.linalg.norm(a[i]) / np.linalg.norm(b[i]) for i in kept]
    found = alignment_penalty(torch.from_numpy(one), torch.from_numpy(other)).item()
    assert found == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    assert alignment_penalty(torch.zeros(2, 3, 4, 4), torch.from_numpy(other[:2])).item() == 0


def test_gradalign_penalty_of_a_linear_network_is_zero():
    defense, batch = on(linear(), "gradalign", attack_bn="eval")
    assert defense.loss(batch, defense.perturb(batch))["alignment_penalty"].abs() < 1e-6
    defense, batch = on(curved(), "gradalign", attack_bn="eval")
    assert defense.loss(batch, defense.perturb(batch))["alignment_penalty"] > 1e-3


@pytest.mark.parametrize("weight", [None, 5.0])
def test_gradalign_is_differentiated_twice(weight):
    """Along a direction in weight space, against differences of the objective in float64."""
    model = curved()
    defense, batch = on(model, "gradalign", attack_bn="eval", **({} if weight is None else {"weight": weight}))
    torch.manual_seed(1)
    perturbed = defense.perturb(batch)
    clean_gradient, noisy = perturbed.extras["gradient"].clone(), perturbed.extras["noisy"]
    assert (noisy - batch.images).abs().max() <= EPS and noisy.min() < 0, "noise is not clipped"
    assert torch.allclose(clean_gradient, input_gradient(model, batch.images, batch.targets) / 16, rtol=1e-5)

    def objective(share: float) -> float:
        points = noisy.clone().requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(model(points), batch.targets, reduction="sum"), points)[0]
        a, b = clean_gradient.flatten(1), gradient.flatten(1)
        cosine = ((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean().item()
        return F.cross_entropy(model(perturbed.images), batch.targets).item() + share * (1 - cosine)

    share = 0.2 if weight is None else weight
    found = defense.loss(batch, perturbed)["loss"]
    assert found.item() == pytest.approx(objective(share), rel=1e-6)
    slopes = torch.autograd.grad(found, list(model.parameters()))
    generator, step, differences = torch.Generator().manual_seed(0), 1e-5, {}
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()]
    for part in (share, 0.0):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(model.parameters(), directions, strict=True):
                    p += sign * step * d
            ends.append(objective(part))
            with torch.no_grad():
                for p, d in zip(model.parameters(), directions, strict=True):
                    p -= sign * step * d
        differences[part] = (ends[0] - ends[1]) / (2 * step)
    along = sum((s * d).sum().item() for s, d in zip(slopes, directions, strict=True))
    assert along == pytest.approx(differences[share], rel=1e-4)
    assert abs(differences[share] - differences[0.0]) > 1e-3 * abs(differences[share]), "the penalty matters here"


# ZeroGrad and MultiGrad


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (2, 1, 3, 3), (3, 3, 16, 16)])
@pytest.mark.parametrize("quantile", [0.0, 0.35, 0.45, 0.7, 1.0])
def test_zerograd_quantile(shape, quantile):
    gradient = np.random.default_rng(0).standard_normal(shape)
    size = np.abs(gradient).reshape(len(gradient), -1)
    threshold = np.quantile(size, quantile, axis=1).reshape(-1, 1, 1, 1)
    expected = np.where(np.abs(gradient) < threshold, 0, gradient)
    assert np.array_equal(without_smallest(torch.from_numpy(gradient), quantile).numpy(), expected)


def test_zerograd_by_hand():
    model = curved()
    defense, batch = on(model, "zerograd", attack_bn="eval", quantile=0.5)
    torch.manual_seed(3)
    found = defense.perturb(batch).images
    raw = ZeroGradFGSM(defense.run.attacker.view, EPS, 2 * EPS, 0.5)
    torch.manual_seed(3)
    assert torch.equal(raw(batch.images, batch.targets), found), "the guard has nothing to correct"

    torch.manual_seed(3)
    start = (batch.images + torch.empty_like(batch.images).uniform_(-EPS, EPS)).clamp(0, 1)
    gradient = input_gradient(model, start, batch.targets)
    threshold = torch.quantile(gradient.abs().flatten(1), 0.5, dim=1).view(-1, 1, 1, 1)
    small = gradient.abs() < threshold
    expected = into_ball(start + 2 * EPS * torch.where(small, 0, gradient).sign(), batch.images)
    assert torch.allclose(found, expected, atol=1e-9)
    assert small.double().mean() == pytest.approx(0.5, abs=0.01)
    assert torch.allclose(found[small], start[small], atol=1e-9), "these stay at the start"


@pytest.mark.parametrize("starts", [1, 3])
def test_multigrad_by_hand(starts):
    model = curved()
    defense, batch = on(model, "multigrad", attack_bn="eval", starts=starts)
    torch.manual_seed(3)
    found = defense.perturb(batch).images.numpy()
    assert MultiGradFGSM(defense.run.attacker.view, EPS, 2 * EPS, starts)(batch.images, batch.targets).max() <= 1

    torch.manual_seed(3)
    clean, signs = batch.images.numpy(), []
    for _ in range(starts):
        start = (batch.images + torch.empty_like(batch.images).uniform_(-EPS, EPS)).clamp(0, 1)
        signs.append(input_gradient(model, start, batch.targets).sign().numpy())
    signs = np.stack(signs)
    agreed = np.where((signs == signs[0]).all(axis=0), signs[0], 0)
    assert np.allclose(found, np.clip(clean + EPS * agreed, 0, 1), atol=1e-9)
    assert (starts == 1) == bool((agreed != 0).all()), "some starts disagree about some pixels"


# GAT and NuAT


def test_gat_and_nuat_distances():
    random = np.random.default_rng(0)
    clean, adversarial = 3 * random.standard_normal((2, 7, 10))
    squared = ((softmax(clean) - softmax(adversarial)) ** 2).sum(axis=1).mean()
    both = torch.from_numpy(clean), torch.from_numpy(adversarial)
    assert squared_distance(*both).item() == pytest.approx(squared, rel=1e-12)
    nuclear = np.linalg.svd(clean - adversarial, compute_uv=False).sum()
    assert nuclear_distance(*both, 7).item() == pytest.approx(nuclear / 7, rel=1e-5)
    assert nuclear_distance(*both, 64).item() == pytest.approx(nuclear / 64, rel=1e-5), "a smaller last batch"


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_nuclear_distance_of_low_rank_has_a_finite_gradient(rank):
    torch.manual_seed(0)
    logits = (torch.randn(8, rank) @ torch.randn(rank, 10)).requires_grad_(True)
    nuclear_distance(torch.zeros(8, 10), logits, 8).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("method", ["gat", "nuat"])
def test_guided_step_and_loss_by_hand(method):
    model = curved()
    defense, batch = on(model, method, weight=6.0)
    defense.run = replace(defense.run, epochs=100)
    defense.on_epoch_start(45)
    weight = 6.0 if method == "gat" else 3.0
    assert defense.weight == weight

    def distance(clean, adversarial):
        if method == "gat":
            return ((clean.softmax(1) - adversarial.softmax(1)) ** 2).sum(1).mean()
        return torch.linalg.svdvals(clean - adversarial).sum() / 128

    for iteration in range(4):
        torch.manual_seed(3)
        perturbed = defense.perturb(batch)
        torch.manual_seed(3)
        corner = 2 * torch.empty_like(batch.images).bernoulli_(0.5) - 1
        start = (batch.images + EPS / 2 * corner).clamp(0, 1).requires_grad_(True)
        objective = F.cross_entropy(model(start).float(), batch.targets)
        if iteration % 2:  # by turns: the first is plain
            objective = objective + weight * distance(model(batch.images).detach().float(), model(start).float())
        (gradient,) = torch.autograd.grad(objective, start)
        expected = into_ball(start.detach() + EPS * gradient.sign(), batch.images)
        assert ((perturbed.images - expected).abs() > 1e-9).double().mean() < 1e-3
        output = defense.loss(batch, perturbed)
        apart = distance(model(batch.images), model(perturbed.images)).item()
        clean_loss = cross_entropy(model(batch.images).detach().numpy(), batch.targets.numpy()).mean()
        assert output["loss"].item() == pytest.approx(clean_loss + weight * apart, rel=1e-5)
        assert torch.allclose(output["logits"], model(perturbed.images))
        defense.commit(batch, perturbed, output)


@pytest.mark.parametrize("method", ["gat", "nuat"])
def test_guidance_takes_turns_by_iteration(method, monkeypatch):
    weights, forward = [], GuidedStep.forward

    def watched(self, images, labels, weight=0.0):
        weights.append(weight)
        return forward(self, images, labels, weight)

    monkeypatch.setattr(GuidedStep, "forward", watched)
    bench = Bench.make(method)
    bench.defense.weight = 2.5
    bench.train(3)
    state = bench.defense.state_dict()
    other = Bench.make(method)
    other.defense.load_state_dict(state)
    other.defense.weight = 2.5
    other.train(2)
    assert weights == [0.0, 2.5, 0.0, 2.5, 0.0], "a resumed run goes on with the other kind"


def test_guided_weights_by_epoch():
    gat, nuat = (Bench.make(name).defense for name in ("gat", "nuat"))
    found = {"gat": [], "nuat": []}
    for name, defense in (("gat", gat), ("nuat", nuat)):
        defense.run = replace(defense.run, epochs=100)
        for epoch in range(100):
            defense.on_epoch_start(epoch)
            found[name].append(defense.weight)
    assert found["gat"] == [10.0] * 86 + [40.0] * 14
    assert np.allclose(found["nuat"], np.minimum(4.5, 4.5 * np.arange(100) / 90))


# MOAT

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
        ("bening:1", "'bening' is no kind of example"),
        ("benign:1, pgd:2", "'pgd' is no kind of example"),
        ("benign:1, pgd-0:2", "'pgd-0' is no kind of example"),
        ("benign + pgd3:1", "'pgd3' is no kind of example"),
        ("benign", "the length 'benign' is no whole number"),
        ("benign:0", "the length '0' is no whole number"),
        ("benign:1, fgsm:1.5", "the length '1.5' is no whole number"),
        ("benign:", "the length '' is no whole number"),
        ("0.5*benign + 0.4*fgsm:1", "the weights of '0.5.benign . 0.4.fgsm:1' do not sum to 1"),
        ("0.5*benign + fgsm:1", "the weights of '0.5.benign . fgsm:1' do not sum to 1"),
        ("0.5.5*benign:1", "'0.5.5.benign' is no kind of example"),
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
    clean, adversarial = (cross_entropy(model(x).detach().numpy(), targets).mean() for x in (batch.images, fgsm))
    for weight in (0.75, 0.5, 0.75):
        perturbed = defense.perturb(batch)
        output = defense.loss(batch, perturbed)
        assert output["loss"].item() == pytest.approx((1 - weight) * clean + weight * adversarial, rel=1e-6)
        defense.commit(batch, perturbed, output)


def weights(result, name="last"):
    return load_file(result.output / name / "model.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


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


class Killed(BaseException):
    """Not an Exception, like the end of a process."""


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


# what the methods refuse


LINF_ONLY = ("n-fgsm", "free", "gradalign", "zerograd", "multigrad", "gat", "nuat", "fgsm-mep", "seat", "atas", "moat")


@pytest.mark.parametrize("method", LINF_ONLY)
def test_other_norms_are_refused(train_small, tmp_path, method):
    with pytest.raises(UserError, match=f"method '{method}' knows the norm Linf only, not L2"):
        train_small(method, norm="L2")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_compiling_is_refused_where_the_loss_holds_a_gradient(train_small, tmp_path):
    with pytest.raises(UserError, match="'gradalign' differentiates twice, which torch.compile cannot"):
        train_small("gradalign", compile=True)
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("method", ["fgsm", "fgsm-rs"])
def test_fgsm_knows_l2(method):
    bench = Bench.make(method)
    threat = replace(bench.run.threat, norm="L2", eps=0.5)
    bench.defense.run = replace(bench.run, threat=threat, attacker=Attacker(bench.model, threat))
    length = (bench.step()[0].images - bench.batch.images).flatten(1).norm(dim=1)
    assert (length <= 0.5 + 1e-5).all() and (length > 0.3).all()


@pytest.mark.parametrize(
    "attack",
    [
        (LinearityStep, {"alpha": EPS, "noise": EPS, "weight": 0.6, "attack_loss": "margin", "per_sample": True}),
        (ZeroGradFGSM, {"alpha": 2 * EPS, "quantile": 0.35}),
        (MultiGradFGSM, {"alpha": 2 * EPS, "starts": 3}),
        (GuidedStep, {"alpha": EPS, "noise": EPS / 2, "distance": squared_distance}),
    ],
    ids=lambda attack: attack[0].__name__,
)
def test_attacks_keep_to_the_ball_without_the_guards_help(attack):
    cls, settings = attack
    bench = Bench.make("pgd")
    images = bench.batch.images.mul(1.4).sub(0.2).clamp(0, 1)
    torch.manual_seed(0)
    found = cls(Attacker(bench.model, bench.run.threat).view, eps=EPS, **settings)(images, bench.batch.targets)
    assert (found - images).abs().max() <= EPS + 1e-6 and found.min() >= 0 and found.max() <= 1
