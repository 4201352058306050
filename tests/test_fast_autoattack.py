"""AutoAttack's fast mode: draws, projections, each attack against the reference in float64, and verdicts."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys

import pytest
import timm
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from scipy.optimize import linprog
from timm.layers import StdConv2d
from torch import nn

from timm_robust.errors import UserError
from timm_robust.evaluation import autoattack
from timm_robust.evaluation.fast import apgd, draws, fab, network, run, run_fast, square
from timm_robust.evaluation.fast.lanes import Problem
from timm_robust.evaluation.fast.network import Network
from timm_robust.evaluation.fast.projections import project
from timm_robust.evaluation.fast.verdict import Judge, allowed, projected
from timm_robust.models.stem import CentreConv2d
from timm_robust.threat import Threat

LINF, L2 = Threat("Linf", 1 / 32, "1/32"), Threat("L2", 0.25, "0.25")
MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def net(few_digits):
    """A small convolutional net, trained on digits until it is right on most; float64, so that sums do not matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        images, targets = few_digits[0]
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(40):
            delta = torch.zeros_like(images).uniform_(-0.05, 0.05)
            loss = nn.functional.cross_entropy(model(images + delta), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.double().eval()


@pytest.fixture(scope="module")
def digits(few_digits):
    images, targets = few_digits[1]
    return images.double(), targets


@pytest.fixture
def problem(net, digits):
    def make(threat, n=24):
        images, targets = digits[0][:n], digits[1][:n]
        with torch.no_grad():
            logits = net(images)
        keep = logits.argmax(1) == targets
        images, targets, logits = images[keep], targets[keep], logits[keep]
        ranks = logits.argsort(1, descending=True)
        return Problem(Network(net, images), images, targets, torch.arange(len(images)), ranks, threat, 0)

    return make


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(apgd, "STEPS", 12)
    monkeypatch.setattr(fab, "STEPS", 5)
    monkeypatch.setattr(square, "QUERIES", 40)


@pytest.fixture
def double(monkeypatch):
    """The reference in float64: it casts images to float32, and makes its buffers in the default precision."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def all_lanes(attack, problem, job=0):
    rows = torch.arange(len(problem.images))
    return attack.start(rows, torch.full_like(rows, job))


def splitmix(seed: int, n: int) -> list[int]:
    state, out = seed & MASK, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


# draws


def test_draws_are_splitmix64():
    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]  # the published test vector
    for seed in (0, 1234567, -5, (1 << 63) + 17):
        bits = draws.child(draws.key(seed), torch.arange(50)).tolist()
        assert [b & MASK for b in bits] == splitmix(seed, 50)
        assert draws.child(draws.key(seed), 49).item() == bits[49]
    expected = splitmix(splitmix(splitmix(7, 4)[3], 12)[11], 1)[0]
    assert draws.key(7, torch.tensor([3]), 11, 0).item() & MASK == expected


def test_draws_have_their_distributions():
    keys = draws.key(0, torch.arange(400), 1)
    numbers = draws.uniform(keys, (500,), torch.float64)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.003 and abs(numbers.var() - 1 / 12) < 0.001
    centred = numbers - 0.5
    for other in (
        centred.roll(1, 0),
        centred.roll(1, 1),
        draws.uniform(draws.key(1, torch.arange(400), 1), (500,)) - 0.5,
    ):
        assert abs((centred * other).mean() * 12) < 0.01  # correlation; its deviation is 0.0022
    normal = draws.normal(keys, (500,), torch.float64)
    assert abs(normal.mean()) < 0.01 and abs(normal.var() - 1) < 0.02 and abs((normal**4).mean() - 3) < 0.15
    counts = draws.integers(keys, (500,), torch.tensor(7)).flatten().bincount()
    assert len(counts) == 7 and (counts / 2e5 - 1 / 7).abs().max() < 0.004
    assert set(draws.signs(keys, (9,)).flatten().tolist()) == {-1.0, 1.0}
    assert draws.integers(keys, (), torch.tensor(0)).abs().max() == 0


def test_draws_do_not_depend_on_the_batch_or_the_precision():
    keys = draws.key(3, torch.arange(10), 2)
    assert torch.equal(draws.uniform(keys, (3, 4))[4:7], draws.uniform(keys[4:7], (3, 4)))
    assert torch.equal(draws.uniform(keys, (3, 4)).double(), draws.uniform(keys, (3, 4), torch.float64))


# projections


def hyperplanes(n, size, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, size, generator=generator, dtype=torch.float64)
    points[points < 0.1], points[points > 0.9] = 0.0, 1.0
    weights = torch.randn(n, size, generator=generator, dtype=torch.float64)
    weights[torch.rand(n, size, generator=generator) < 0.2] = 0
    inside = torch.rand(n, size, generator=generator, dtype=torch.float64)
    return points, weights, (weights * inside).sum(1)


@pytest.mark.parametrize("norm, reference", [("Linf", projection_linf), ("L2", projection_l2)])
def test_projections_are_the_references(norm, reference, double):
    points, weights, offset = hyperplanes(60, 48, 0)
    as_image = (60, 3, 4, 4)
    residual = (weights * points).sum(1) - offset
    d, length = project(points.view(as_image), weights.view(as_image), residual, norm)
    flat = d.flatten(1)
    torch.testing.assert_close((weights * (points + flat)).sum(1), offset)
    assert (points + flat).min() > -1e-12 and (points + flat).max() < 1 + 1e-12
    expected = reference(points, weights, offset)
    ours, theirs = (x.abs().amax(1) if norm == "Linf" else x.norm(dim=1) for x in (flat, expected))
    torch.testing.assert_close(length.flatten(), ours)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(flat, expected)


def test_linf_projection_solves_the_linear_program():
    points, weights, offset = hyperplanes(8, 12, 1)
    residual = (weights * points).sum(1) - offset
    _, length = project(points.view(8, 3, 2, 2), weights.view(8, 3, 2, 2), residual, "Linf")
    for t, w, b, found in zip(points, weights, offset, length.flatten(), strict=True):
        n = len(t)
        above = torch.cat([torch.eye(n), -torch.ones(n, 1)], 1)  # d - s <= 0
        below = torch.cat([-torch.eye(n), -torch.ones(n, 1)], 1)
        solved = linprog(
            [0] * n + [1],
            A_ub=torch.cat([above, below]).numpy(),
            b_ub=[0] * 2 * n,
            A_eq=[[*w.tolist(), 0]],
            b_eq=[(b - (w * t).sum()).item()],
            bounds=[*zip((-t).tolist(), (1 - t).tolist(), strict=True), (0, None)],
        )
        assert solved.fun == pytest.approx(found.item(), abs=1e-9)


def test_a_hyperplane_outside_the_box_is_neared_to_the_corner():
    points, weights = torch.full((1, 1, 1, 2), 0.25), torch.tensor([[[[1.0, -2.0]]]])
    d, length = project(points, weights, torch.tensor([-50.0]), "Linf")
    assert torch.equal(points + d, torch.tensor([[[[1.0, 0.0]]]])) and length.item() == 0.75
    assert project(points, torch.zeros_like(weights), torch.tensor([1.0]), "L2")[0].abs().max() == 0


# attacks


def test_apgd_checks_its_step_where_the_reference_does():
    assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_apgd_walks_as_the_reference(problem, net, threat, loss, double):
    shared = problem(Threat(threat.norm, threat.eps / 4, ""))
    attack = apgd.APGD(shared, loss, jobs=1, stream=1, steps=60)
    state = all_lanes(attack, shared)
    kind = APGDAttack_targeted if loss == "dlr-targeted" else APGDAttack
    reference = kind(net, n_iter=60, norm=threat.norm, eps=shared.threat.eps, device="cpu")
    reference.loss = loss
    reference.y_target = shared.ranks[:, 1]
    reference.init_hyperparam(shared.images)
    best, still_correct, best_loss, _ = reference.attack_single_run(
        shared.images, shared.targets, x_init=state.x.contiguous()
    )
    for _ in range(61):
        assert not state.done.any()
        attack.step(state)
    assert state.done.all() and still_correct.any()
    assert torch.equal(~state.hit, still_correct)
    torch.testing.assert_close(state.best_loss, best_loss)
    torch.testing.assert_close(state.best, best)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_apgd_starts_on_the_sphere(norm):
    keys = draws.key(0, torch.arange(5))
    size = apgd.norms(apgd.noise(keys, torch.zeros(5, 3, 8, 8, dtype=torch.float64), norm), norm)
    torch.testing.assert_close(size, torch.ones_like(size))


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("targeted", [True, False])
def test_fab_walks_as_the_reference(problem, net, threat, targeted, double):
    shared = problem(Threat(threat.norm, threat.eps / 16, ""))  # few falls, long walks
    attack = fab.FAB(shared, targeted, jobs=1, stream=1, steps=30)
    state = all_lanes(attack, shared)
    asked = []

    def record(images):
        asked.append(images.detach().clone())
        return net(images)

    reference = FABAttack_PT(record, norm=threat.norm, n_iter=30, eps=threat.eps, device="cpu")
    reference.target_class = 2
    with torch.no_grad():
        reference.attack_single_run(shared.images, shared.targets, is_targeted=targeted)
        last = asked[-1]
        crossed = net(last).argmax(1) != shared.targets
    expected = torch.where(crossed[:, None, None, None], shared.images + 0.9 * (last - shared.images), last)
    finals = torch.full_like(shared.images, -1)
    for _ in range(61):
        attack.step(state)
        new = state.done & (finals[:, 0, 0, 0] < 0)
        finals[new] = state.x[new]
    assert state.done.all() and crossed.any()
    torch.testing.assert_close(finals, expected)


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_squares_shrink_as_the_references(size, norm):
    reference = SquareAttack(None, norm=norm, n_queries=5000, eps=1, resc_schedule=False)
    for query in range(5000):
        p = reference.p_selection(query)
        expected = max(round(math.sqrt(p * size * size)), 1 if norm == "Linf" else 3)
        if norm == "L2" and expected % 2 == 0:
            expected += 1
        assert square.side(query, size, size, norm) == min(expected, size)


def test_square_proposals_are_squares_of_the_ball(problem):
    shared = problem(LINF)
    attack = square.Square(shared, stream=1, queries=300)
    state = all_lanes(attack, shared)
    low, high = (shared.images - 1 / 32).clamp(min=0), (shared.images + 1 / 32).clamp(max=1)
    assert ((state.x == low) | (state.x == high)).all()
    for _ in range(50):
        attack.step(state)
        side = attack.sides[state.query]
        for image, best, clean, s in zip(state.x, state.best, shared.images, side, strict=True):
            changed = (image != best).any(0).nonzero()
            if len(changed):
                assert (changed.amax(0) - changed.amin(0)).max() < s
            # the published formula: 2 eps up or down, clipped; a channel takes one of the two
            for channel in range(3):
                mask = image[channel] != best[channel]
                ways = [
                    (best[channel] + sign / 16).clamp(clean[channel] - 1 / 32, clean[channel] + 1 / 32).clamp(0, 1)
                    for sign in (-1, 1)
                ]
                assert any(torch.equal(image[channel][mask], way[mask]) for way in ways)


def test_square_counts_what_it_need_not_ask(problem, monkeypatch):
    """Proposals that change nothing are skipped: fewer forwards, the same walk."""

    def walk(redraws):
        monkeypatch.setattr(square, "REDRAWS", redraws)
        shared = problem(LINF)
        attack = square.Square(shared, stream=1, queries=600)
        state, steps = all_lanes(attack, shared), 0
        margin = torch.zeros(len(shared.images), dtype=torch.float64)
        while not state.done.all():
            attack.step(state)
            steps += 1
            margin = state.margin
        return margin, steps

    (asked, all_steps), (skipped, steps) = walk(0), walk(3)
    torch.testing.assert_close(asked, skipped)
    assert steps < all_steps == 601


def test_eta_is_the_references():
    reference = SquareAttack(None, norm="L2", eps=1, device="cpu")
    for size in (1, 3, 5, 6, 8, 13):
        with torch.random.fork_rng(devices=[]):
            expected = reference.eta(size)
        ours = square.eta(size)
        assert torch.allclose(ours, expected, atol=1e-6) or torch.allclose(ours.T, expected, atol=1e-6)


def test_square_moves_mass_between_windows(problem):
    """One L2 proposal, again by slices of one image."""
    shared = problem(L2)
    attack = square.Square(shared, stream=1, queries=3000)
    state = all_lanes(attack, shared)
    for query in (0, 20, 700, 2500):
        state.query.fill_(query)
        x = attack._l2(state.clean, state.best, state.keys, state.query)
        for row in range(3):
            keys = draws.child(state.keys[row : row + 1], query + 1)
            s = square.side(query, 8, 8, "L2")
            top, left, top2, left2 = (
                int(draws.uniform(draws.child(keys, k), (), torch.float64) * (8 - s)) for k in range(4)
            )
            signs = draws.signs(draws.child(keys, 4), (3, 1, 1), torch.float64)[0]
            eta = square.eta(s).double()
            eta = eta.T if draws.signs(draws.child(keys, 5), ())[0] > 0 else eta
            clean, delta = shared.images[row], state.best[row] - shared.images[row]
            here, there = (slice(None), slice(top, top + s), slice(left, left + s)), torch.zeros(8, 8, dtype=torch.bool)
            there[top : top + s, left : left + s] = there[top2 : top2 + s, left2 : left2 + s] = True
            used = (delta * there).flatten(1).norm(dim=1)
            old = delta[here].clone()
            new = eta * signs + old / (1e-12 + old.flatten(1).norm(dim=1)[:, None, None])
            budget = (max(0.25**2 - delta.norm() ** 2, 0) / 3 + used**2) ** 0.5
            new = new / new.flatten(1).norm(dim=1)[:, None, None] * budget[:, None, None]
            delta[:, top2 : top2 + s, left2 : left2 + s] = 0
            delta[here] = new
            torch.testing.assert_close(x[row], (clean + 0.25 * delta / delta.norm()).clamp(0, 1), atol=1e-7, rtol=1e-6)


# the crafting copy


def test_batch_norm_folds_and_the_model_is_left_alone(small_model):
    small_model.eval()
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        for module in small_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2), module.bias.uniform_(-1, 1)
        before, wanted = copy.deepcopy(small_model.state_dict()), small_model(images)
        made = Network(small_model, images)
        torch.testing.assert_close(made.logits(images), wanted, rtol=1e-4, atol=1e-4)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in small_model.modules())
    assert made.folded == norms and not any(isinstance(m, nn.BatchNorm2d) for m in made.module.modules())
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())
    assert all(parameter.requires_grad for parameter in small_model.parameters())


def test_passes_without_gradients_run_frozen_on_a_cpu(small_model):
    model = small_model.eval()
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = Network(model, images[:8])
    assert net.frozen is not None
    for n in (1, 5, 9):
        with torch.no_grad():
            assert torch.allclose(net.logits(net.layout(images[:n])), model(images[:n]), atol=1e-4)

    class Branches(nn.Module):  # a trace would take one branch for all images
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) * (2 if len(x) > 1 else 1)

    branches = Branches().eval()
    net = Network(branches, images[:8])
    assert net.frozen is None
    with torch.no_grad():
        assert torch.allclose(net.logits(net.layout(images[:1])), branches(images[:1]), atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "regnetx_002", "vit_tiny_patch16_224", "densenet121"])
def test_other_families_fold_or_stay(name):
    kwargs = {"img_size": 32, "patch_size": 8} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    images = torch.rand(2, 3, 32, 32)
    made = Network(model, images)
    with torch.no_grad():
        wanted = model(images)
        assert (made.logits(images) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (made.folded > 10) == (not name.startswith("vit"))


@pytest.mark.parametrize("derived, folded", [(CentreConv2d, 2), (StdConv2d, 1)])
def test_convolutions_that_are_derived_fold_where_that_is_the_same(derived, folded):
    """Ours uses the centre of its weight, and folds; timm's standardises its weight, which undoes a scale in it."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.first = derived(3, 4, 5), nn.BatchNorm2d(4)
            self.two, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            for norm in (self.first, self.second):
                norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)

        def forward(self, x):
            return self.second(self.two(self.first(self.one(x)).relu())).mean((2, 3))

    model, images = Two().eval(), torch.rand(2, 3, 8, 8)
    made = Network(model, images)
    assert made.folded == folded
    with torch.no_grad():
        torch.testing.assert_close(made(made.layout(images)), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images, lanes", [(0, 1), (33, 33), (64, 64), (66, 33), (200, 50)])
def test_square_has_no_small_last_batch_on_a_cpu(images, lanes, problem):
    assert run._cpu_lanes(square.Square(problem(LINF), 6, 10), images, 256) == lanes
    assert run._cpu_lanes(apgd.APGD(problem(LINF), "ce", 1, 1, 10), images, 256) == run.CPU_LANES
    assert run._cpu_lanes(square.Square(problem(LINF), 6, 10), images, 16) <= 16


def test_a_convolution_that_runs_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x))).mean((2, 3))

    assert Network(Twice().eval(), torch.rand(2, 3, 4, 4)).folded == 0


# verdicts


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_robust_accuracy_is_the_references(net, digits, threat, double, monkeypatch):
    """Three targets and few queries, so that it takes seconds."""
    monkeypatch.setattr(square, "QUERIES", 100)
    monkeypatch.setattr(autoattack, "attacks_for", lambda classes, version: (autoattack.VERSIONS[version], 3))
    images, targets = digits[0][:40], digits[1][:40]
    reference = AutoAttack(net, eps=threat.eps, norm=threat.norm, seed=0)
    reference.square.n_queries = 100
    reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = 3
    with torch.random.fork_rng(devices=[]):
        adversarial, _ = reference.run_standard_evaluation(images, targets, batch_size=40)
    with torch.no_grad():
        expected = net(adversarial).argmax(1) == targets
        clean = net(images).argmax(1) == targets
        result = run_fast(net, images, targets, threat)
        fell = net(result.adversarial).argmax(1) != targets
    assert 5 <= expected.sum() <= clean.sum() - 5  # a verdict that could have been otherwise
    assert (result.robust != expected).sum() <= 1
    assert torch.equal(fell, ~result.robust)
    away = (result.adversarial - images).flatten(1)
    assert (away.abs().amax(1) if threat.norm == "Linf" else away.norm(dim=1)).max() <= threat.eps + 1e-9
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    assert list(result.after) == ["apgd-ce", "apgd-t", "fab-t", "square"] == list(result.seconds)
    assert result.after["square"] == result.robust.float().mean().item()
    shares = [clean.float().mean().item(), *result.after.values()]
    assert shares == sorted(shares, reverse=True)
    assert torch.equal(result.fell_to == 0, ~clean)


def test_plus_runs_the_six_attacks(net, digits, short):
    result = run_fast(net, digits[0][:12], digits[1][:12], LINF, version="plus")
    assert list(result.after) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]


def test_batch_size_and_shards_do_not_matter(net, digits, short):
    images, targets = digits[0][:40], digits[1][:40]
    whole = run_fast(net, images, targets, LINF, batch_size=64)
    small = run_fast(net, images, targets, LINF, batch_size=5)
    assert torch.equal(whole.fell_to, small.fell_to)
    assert len(set(whole.fell_to.tolist())) > 2
    for rows in (torch.arange(0, 40, 2), torch.arange(1, 40, 2)):
        shard = run_fast(net, images[rows], targets[rows], LINF, indices=rows)
        assert torch.equal(shard.fell_to, whole.fell_to[rows])
    other = run_fast(net, images, targets, LINF, seed=1)
    differs = (other.adversarial - whole.adversarial).flatten(1).abs().amax(1) > 0
    assert torch.equal(differs, whole.fell_to > 0)


def test_a_killed_run_goes_on_to_the_same_verdicts(net, digits, short, monkeypatch):
    monkeypatch.setattr(run, "SECONDS_BETWEEN_SAVES", 0)
    images, targets = digits[0][:20], digits[1][:20]
    saves = []
    whole = run_fast(net, images, targets, LINF, batch_size=8, save=saves.append)
    assert len(saves) > 100

    class Killed(Exception):
        pass

    for moment in torch.randperm(len(saves), generator=torch.Generator().manual_seed(0))[:6].tolist():
        count, kept = itertools.count(), {}

        def save(state, count=count, kept=kept, moment=moment):
            kept.update(state)
            if next(count) == moment:
                raise Killed

        with pytest.raises(Killed):
            run_fast(net, images, targets, LINF, batch_size=8, save=save)
        again = run_fast(net, images, targets, LINF, batch_size=8, resume=kept)
        assert torch.equal(again.fell_to, whole.fell_to) and again.after == whole.after
    with pytest.raises(UserError, match="20 images, expected 10"):
        run_fast(net, images[:10], targets[:10], LINF, resume=saves[-1])


def test_only_the_original_says_that_an_image_fell(net, digits, short, monkeypatch):
    """A crafting copy that calls every image misclassified breaks none that the original has right."""
    real = Network.__call__
    monkeypatch.setattr(Network, "__call__", lambda self, images, **settings: -real(self, images, **settings))
    harmless = Threat("Linf", 1e-6, "1e-6")
    images, targets = digits[0][:10], digits[1][:10]
    with torch.no_grad():
        clean = net(images).argmax(1) == targets
    assert torch.equal(run_fast(net, images, targets, harmless).robust, clean)


NEW_NAMES = """
import torch
from timm_robust.evaluation.fast.verdict import full_float32
torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
with full_float32():
    print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
"""
INHERITED = """
import torch
from timm_robust.evaluation.fast.verdict import full_float32
with full_float32():
    pass
torch.backends.fp32_precision = "tf32"
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
"""


@pytest.fixture
def tf32():
    """Both switches on, as a GPU's user may have set them."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield places
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def test_the_last_word_is_spoken_without_tf32(tf32):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    seen = []
    model.register_forward_hook(lambda *_: seen.append([place.allow_tf32 for place in tf32]))
    Judge(model, torch.rand(2, 3, 2, 2), torch.zeros(2, dtype=torch.long), LINF, 2).logits(torch.rand(2, 3, 2, 2))
    assert seen == [[False, False]] and all(place.allow_tf32 for place in tf32)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has the old names only")
def test_the_last_word_under_the_new_names():
    """In processes of their own: torch does not let old and new names mix."""
    for script, expected in ((NEW_NAMES, "ieee ieee tf32 tf32"), (INHERITED, "tf32 tf32")):
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert told.split() == expected.split()


class Views(nn.Module):
    """Flattens a feature map with `view`, which channels_last does not allow."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, 10)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(len(x), -1))


def test_a_model_that_views_its_feature_maps(digits, short):
    torch.manual_seed(0)
    model = Views().eval()
    images = digits[0][:8].float()
    with torch.no_grad():
        targets = model(images).argmax(1)
    assert Network(model, images).memory_format is torch.contiguous_format
    for threat in (LINF, L2):
        result = run_fast(model, images, targets, threat, version="plus")
        assert result.fell_to.min() >= -1 and len(result.after) == 6


def test_others_run_in_channels_last(net, digits):
    assert Network(net, digits[0][:8]).memory_format is torch.channels_last


def test_a_compiled_graph_is_asked_for_one_gradient_only(problem):
    """It frees its buffers in the backward pass, and untargeted FAB takes one for each class."""
    case = problem(LINF)
    asked = []

    def compiled(images):
        asked.append(images)
        return case.network.module(images)

    case.network.compiled, case.network.full = compiled, len(case.images)
    for targeted in (True, False):
        attack = fab.FAB(case, targeted, 1, 1, 3)
        attack.step(all_lanes(attack, case))
        assert len(asked) == 1


class Unlike(nn.Linear):
    """Its copies have other weights."""

    def __deepcopy__(self, memo):
        return Unlike(self.in_features, self.out_features)


def test_a_copy_that_computes_something_else_is_refused():
    model = nn.Sequential(nn.Flatten(), Unlike(12, 5)).eval()
    with pytest.raises(UserError, match="that of Sequential gives other logits: use the reference mode"):
        run_fast(model, torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.long), LINF)


class Half(nn.Module):
    """Weights in half precision, logits in float32."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 10).to(torch.bfloat16)

    def forward(self, x):
        return self.head(x.flatten(1).to(torch.bfloat16)).float()


def test_images_keep_float32_whatever_the_weights_have(digits, short):
    model, images = Half().eval(), digits[0][:4].float()
    assert Network(model, images).layout(images).dtype == torch.float32
    run_fast(model, images, digits[1][:4], LINF)


def test_what_leaves_the_ball_is_projected_first(net, digits):
    images, targets = digits[0][:6], digits[1][:6]
    judge = Judge(net, images, targets, Threat("Linf", 1e-6, "1e-6"), 4)
    with torch.no_grad():
        right = (net(images).argmax(1) == targets).nonzero().squeeze(1)
    assert not judge(right, torch.rand(len(right), 3, 8, 8)).any()
    for threat in (LINF, L2):
        far = projected(torch.randn(6, 3, 8, 8, dtype=torch.float64), images, threat)
        assert allowed(far, images, threat).all()
        assert not allowed(images + 0.2, images, threat).any()
        assert not allowed(torch.full_like(images, float("nan")), images, threat).any()


def test_nothing_of_the_process_changes(small_model, few_digits, short):
    images, targets = (part[:10] for part in few_digits[1])
    small_model.eval()
    before, state = copy.deepcopy(small_model.state_dict()), torch.get_rng_state()
    run_fast(small_model, images, targets, LINF, precision="bf16")
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in small_model.parameters())


def test_progress_counts_jobs(net, digits, short):
    told = []
    run_fast(net, digits[0][:10], digits[1][:10], LINF, on_progress=lambda *a: told.append(a))
    for _, done, of, standing in told:
        assert 0 <= done <= of and 0 <= standing <= 1
    last = {attack: (done, of) for attack, done, of, _ in told}
    assert all(done == of for done, of in last.values()) and last["apgd-t"][1] % 9 == 0


class Coarse(Network):
    """A crafting copy in bf16 whose logits come in large steps, so that it misses what falls by a hair."""

    def __call__(self, images, **settings):
        logits = super().__call__(images, **settings)
        return logits if self.precision == "fp32" else logits + ((logits / 4).round() * 4 - logits).detach()

    def logits(self, images):
        return self(images).detach()


def test_what_comes_close_in_bf16_runs_once_more_in_float32(net, digits, short, monkeypatch):
    images, targets = digits
    threat = Threat("Linf", 0.06, "0.06")
    exact = run_fast(net, images, targets, threat, skip=("fab-t", "square"))
    monkeypatch.setattr(run, "Network", Coarse)
    saves = []
    coarse = run_fast(
        net, images, targets, threat, precision="bf16", skip=("fab-t", "square"), save=lambda s: saves.append(s)
    )
    monkeypatch.setattr(apgd, "CLOSE", -math.inf)  # nothing is close
    missed = run_fast(net, images, targets, threat, precision="bf16", skip=("fab-t", "square"))
    assert exact.robust.sum() <= coarse.robust.sum() < missed.robust.sum()
    assert not (saves[-1]["close"] & coarse.robust[:, None]).any()


def test_what_was_close_is_kept_by_a_state(net, digits, short, monkeypatch):
    monkeypatch.setattr(run, "Network", Coarse)
    monkeypatch.setattr(run, "SECONDS_BETWEEN_SAVES", 0)
    images, targets = digits
    settings = {"threat": Threat("Linf", 0.06, "0.06"), "precision": "bf16", "skip": ("apgd-ce", "fab-t", "square")}
    saves = []
    whole = run_fast(net, images, targets, **settings, batch_size=8, save=lambda s: saves.append(copy.deepcopy(s)))
    between = [s for s in saves if s["attack"] == "apgd-t" and s["close"].any()]
    assert any(s["ended"][s["fell_to"] < 0].all() for s in between), "killed in the second pass"
    for state in between[:: max(len(between) // 5, 1)]:
        assert torch.equal(run_fast(net, images, targets, **settings, resume=state).robust, whole.robust)


def test_a_process_without_images_has_nothing_to_say(net, digits, short):
    images, targets = digits
    result = run_fast(net, images[:0], targets[:0], LINF)
    assert len(result.robust) == len(result.fell_to) == 0 and list(result.after)[-1] == "square"


def test_what_it_cannot_do_is_refused(net, digits):
    images, targets = digits[0][:2], digits[1][:2]
    for change, words in (
        ({"threat": Threat("L1", 12.0, "12")}, "not L1: use the reference mode"),
        ({"version": "rand"}, "no version rand"),
        ({"version": "standart"}, "unknown AutoAttack version"),
        ({"precision": "fp8"}, "unknown precision"),
    ):
        with pytest.raises(UserError, match=words):
            run_fast(net, images, targets, **{"threat": LINF, **change})
    with pytest.raises(UserError, match="train mode"):
        run_fast(copy.deepcopy(net).train(), images, targets, LINF)
    assert network.PRECISIONS == ("fp32", "bf16")
