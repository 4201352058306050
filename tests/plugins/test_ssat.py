"""Self-supervised adversarial training against formulas written independently, and in real small runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm_robust_plugins.ssat import knn
from timm_robust_plugins.ssat.evaluate import ON_VOTE, evaluate
from timm_robust_plugins.ssat.information import Features, information_loss, nce, scores
from timm_robust_plugins.ssat.knn import Neighbours, credibility, fit_temperature, soft_knn_logits
from timm_robust_plugins.ssat.pgd_knn import PGDkNN, approach, hinges
from timm_robust_plugins.ssat.representation import Encoder, find_layout, recorded
from timm_robust_plugins.ssat.views import random_view
from torch import nn

import timm_robust
from tests.support import EPS, SMALL, Killed
from timm_robust.errors import UserError
from timm_robust.models.factory import build_model
from timm_robust.testing import Bench
from timm_robust.training.engine import Engine


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# the bound on mutual information


def nce_of(sources: np.ndarray, targets: np.ndarray, clip: float) -> float:
    """From the definition, one image and place at a time."""
    images, width, places = targets.shape
    total = 0.0
    for i in range(images):
        u = {
            (j, place): clip * math.tanh(sources[i] @ targets[j, :, place] / math.sqrt(width) / clip)
            for j in range(images)
            for place in range(places)
        }
        others = sum(math.exp(value) for (j, _), value in u.items() if j != i)
        total -= sum(u[i, place] - math.log(math.exp(u[i, place]) + others) for place in range(places))
    return total / (images * places)


@pytest.mark.parametrize("clip", [20.0, 1.5])
def test_nce(clip):
    sources, targets = 5 * draws(4, 6), draws(4, 6, 9, seed=1)
    found = nce(scores(torch.from_numpy(sources), torch.from_numpy(targets)), clip=clip).item()
    assert found == pytest.approx(nce_of(sources, targets, clip), rel=1e-12)


@pytest.mark.parametrize(("images", "total"), [(100, 24.116), (10, 16.932), (2, 10.428)])
def test_zero_features(images, total):
    """log(1 + L (B - 1)) for each term, whatever the places."""
    view = Features(torch.zeros(images, 8), (torch.zeros(images, 8, 25), torch.zeros(images, 8, 49)))
    terms = [math.log(1 + places * (images - 1)) for places in (25, 49, 25)]
    for target, expected in zip((*view.maps, view.maps[0]), terms, strict=True):
        assert nce(scores(view.vector, target)).item() == pytest.approx(expected, rel=1e-6)
    places = torch.randint(25, (2, images))
    loss = information_loss(view, view, places, penalty=0.05).item()
    assert loss == pytest.approx(sum(terms), rel=1e-6) and loss == pytest.approx(total, abs=5e-4)


@pytest.mark.parametrize(("images", "places", "clip"), [(10, 25, 2.0), (3, 49, 0.5), (4, 1, 20.0)])
def test_nce_falls_to_its_clip(images, places, clip):
    """Perfectly separated images: every score at the end of its range."""
    separated = (2 * torch.eye(images, dtype=torch.float64) - 1)[:, :, None].expand(-1, -1, places) * 1e6
    least = math.log1p(places * (images - 1) * math.exp(-2 * clip))
    assert nce(separated, clip=clip).item() == pytest.approx(least, rel=1e-6)
    assert nce(0.9 * clip * separated.sign(), clip=clip).item() > least


def some_views(images: int = 5, width: int = 6) -> tuple[Features, Features]:
    one, other = (
        Features(
            torch.from_numpy(2 * draws(images, width, seed=seed)),
            tuple(torch.from_numpy(draws(images, width, places, seed=seed + places)) for places in (25, 49)),
        )
        for seed in (0, 100)
    )
    return one, other


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_information_loss(penalty):
    one, other = some_views()
    places = torch.randint(25, (2, 5), generator=torch.Generator().manual_seed(0))
    (v1, (c1, f1)), (v2, (c2, f2)) = (
        (view.vector.numpy(), [found.numpy() for found in view.maps]) for view in (one, other)
    )
    p1, p2 = places.numpy()
    star1 = np.stack([c1[i, :, p1[i]] for i in range(5)])
    star2 = np.stack([c2[i, :, p2[i]] for i in range(5)])
    terms = [(v1, c2), (v2, c1), (v1, f2), (v2, f1), (star1, c2), (star2, c1)]
    squares = sum((np.einsum("id,jdl->ijl", *term) ** 2 / 6).mean() for term in terms)
    expected = 0.5 * sum(nce_of(*term, 20.0) for term in terms) + 0.5 * penalty * squares
    assert information_loss(one, other, places, penalty=penalty).item() == pytest.approx(expected, rel=1e-12)


def test_information_loss_without_maps():
    """One place: the vectors of the two views only."""
    one, other = (Features(view.vector, (view.maps[0][:, :, :1],)) for view in some_views())
    expected = 0.5 * (
        nce_of(one.vector.numpy(), other.maps[0].numpy(), 20.0)
        + nce_of(other.vector.numpy(), one.maps[0].numpy(), 20.0)
    )
    loss = information_loss(one, other, torch.randint(25, (2, 5)))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_swapped_views():
    """The same loss, with their places; without, only what depends on the places differs."""
    one, other = some_views()
    places = torch.tensor([[0, 5, 24, 3, 7], [9, 1, 2, 20, 11]])
    loss = information_loss(one, other, places)
    torch.testing.assert_close(loss, information_loss(other, one, places.flip(0)), rtol=1e-12, atol=0)
    assert loss.item() != pytest.approx(information_loss(other, one, places).item(), rel=1e-6)
    flat = [
        Features(view.vector, (view.maps[0].mean(2, True).expand(-1, -1, 25), view.maps[1])) for view in some_views()
    ]
    swapped = information_loss(*flat[::-1], places)
    torch.testing.assert_close(information_loss(*flat, places), swapped, rtol=1e-12, atol=0)


# neighbours


@pytest.fixture
def index() -> Neighbours:
    """60 samples of 5 features in 4 classes of different sizes; class 3 has two."""
    labels = torch.tensor([0] * 10 + [1] * 28 + [2] * 20 + [3] * 2)[
        torch.from_numpy(np.random.default_rng(0).permutation(60))
    ]
    return Neighbours(torch.from_numpy(draws(60, 5)), labels, 4, k=7)


def squared(index: Neighbours, query: np.ndarray) -> np.ndarray:
    return ((index.features.numpy() - query) ** 2).sum(axis=1)


QUERIES = torch.from_numpy(draws(9, 5, seed=3))


TARGETS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 1])


def votes_of(index: Neighbours, queries: np.ndarray) -> np.ndarray:
    nearest = [np.argsort(squared(index, query))[: index.k] for query in queries]
    return np.stack([np.bincount(index.labels.numpy()[found], minlength=4) for found in nearest])


@pytest.mark.parametrize("chunk", [2**26, 100])
def test_votes(index, monkeypatch, chunk):
    monkeypatch.setattr(knn, "CHUNK", chunk)
    counts = votes_of(index, QUERIES.numpy())
    assert index.counts(QUERIES).tolist() == counts.tolist()
    assert index.vote(QUERIES).tolist() == counts.argmax(axis=1).tolist()
    radius = [np.sort(squared(index, query))[6] for query in QUERIES.numpy()]
    np.testing.assert_allclose(index.radius(QUERIES), radius, rtol=1e-9)


def test_all_neighbours_vote_for_the_commonest_class(index):
    every = Neighbours(index.features, index.labels, 4, k=60)
    assert (every.vote(QUERIES) == 1).all()
    assert Neighbours(index.features, index.labels, 4, k=10_000).k == 60


def test_ties_go_to_the_lowest_class():
    features = torch.eye(4)
    tied = Neighbours(features, torch.tensor([3, 1, 3, 1]), 5, k=4)
    assert tied.vote(torch.zeros(2, 4)).tolist() == [1, 1]


def test_credibility(index):
    calibration, classes = torch.from_numpy(draws(20, 5, seed=4)), torch.arange(20) % 4
    held_out, counts = votes_of(index, calibration.numpy()), votes_of(index, QUERIES.numpy())
    strange = [7 - held_out[i, classes[i]] for i in range(20)]
    expected = [np.mean([a >= 7 - row.max() for a in strange]) for row in counts]
    found = credibility(index.counts(QUERIES), index.counts(calibration), classes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("chunk", [2**26, 100])
@pytest.mark.parametrize("count", [6, 15])
def test_guides_of_the_wrong_class(index, monkeypatch, count, chunk):
    monkeypatch.setattr(knn, "CHUNK", chunk)
    labels = index.labels.numpy()
    positions, counted = index.wrong_class(QUERIES, TARGETS, count)
    means = index.mean(positions, counted).numpy()
    for row, (query, target) in enumerate(zip(QUERIES.numpy(), TARGETS.numpy(), strict=True)):
        distances = squared(index, query)
        first = min((i for i in range(60) if labels[i] != target), key=lambda i: distances[i])
        near = squared(index, index.features[first].numpy())
        same = sorted((i for i in range(60) if labels[i] == labels[first]), key=lambda i: near[i])[:count]
        assert same[0] == first
        assert sorted(positions[row][counted[row]].tolist()) == sorted(same)
        np.testing.assert_allclose(means[row], index.features.numpy()[same].mean(axis=0), rtol=1e-9)


def test_balanced_guides(index):
    labels = index.labels.numpy()
    (same, is_same), (wrong, is_wrong) = index.balanced(QUERIES, TARGETS, 6)
    for row, (query, target) in enumerate(zip(QUERIES.numpy(), TARGETS.numpy(), strict=True)):
        distances = squared(index, query)
        nearest = {c: sorted(np.flatnonzero(labels == c), key=lambda i: distances[i])[:3] for c in range(4)}
        other = min((c for c in range(4) if c != target), key=lambda c: distances[nearest[c]].mean())
        assert sorted(same[row][is_same[row]].tolist()) == sorted(nearest[target])
        assert sorted(wrong[row][is_wrong[row]].tolist()) == sorted(nearest[other])


def test_hinges(index):
    objective = hinges(index, QUERIES, TARGETS, 6)
    (same, is_same), (wrong, is_wrong) = index.balanced(QUERIES, TARGETS, 6)
    moved = QUERIES + 0.3 * torch.from_numpy(draws(9, 5, seed=8))
    expected = 0.0
    for row in range(9):
        limit, now = np.sort(squared(index, QUERIES[row].numpy()))[6], squared(index, moved[row].numpy())
        expected += sum(max(0, limit - now[i]) for i in same[row][is_same[row]].tolist())
        expected += sum(max(0, now[i] - limit) for i in wrong[row][is_wrong[row]].tolist())
    assert objective(moved).item() == pytest.approx(expected, rel=1e-9)


def test_the_mean_of_the_guides_is_enough(index):
    """The gradient of the mean squared distance to the guides is that of the squared distance to their mean."""
    positions, counted = index.wrong_class(QUERIES, TARGETS, 6)
    moved = QUERIES + 0.3 * torch.from_numpy(draws(9, 5, seed=8))
    one, two = moved.clone().requires_grad_(), moved.clone().requires_grad_()
    for row in range(9):
        guides = index.features[positions[row][counted[row]]]
        (one[row] - guides).square().sum(1).mean().backward()
    approach(index, QUERIES, TARGETS, 6)(two).backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.5, 10.0])
def test_soft_knn(index, tau):
    expected = [
        [
            np.logaddexp.reduce([-squared(index, query)[i] / tau for i in np.flatnonzero(index.labels == c)])
            for c in range(4)
        ]
        for query in QUERIES.numpy()
    ]
    np.testing.assert_allclose(soft_knn_logits(index, QUERIES, tau), expected, rtol=1e-9)


def test_cold_soft_knn_is_the_nearest_neighbour(index):
    """In float32 too, where a far class would underflow, and with a finite gradient."""
    single = Neighbours(index.features.float(), index.labels, 4, k=1)
    queries = QUERIES.float().requires_grad_()
    logits = soft_knn_logits(single, queries, 1e-4)
    assert logits.isfinite().all() and torch.equal(logits.argmax(1), single.vote(queries.detach()))
    logits.logsumexp(1).sum().backward()
    assert queries.grad.isfinite().all() and queries.grad.abs().max() > 0


def test_temperature_follows_the_vote(index):
    """And the scale of the features."""
    queries = torch.from_numpy(draws(40, 5, seed=9))
    tau, agreement = fit_temperature(index, queries)
    votes = index.vote(queries)
    assert agreement == pytest.approx((soft_knn_logits(index, queries, tau).argmax(1) == votes).double().mean().item())
    assert agreement > 0.6
    large = Neighbours(100 * index.features, index.labels, 4, k=7)
    assert fit_temperature(large, 100 * queries)[0] == pytest.approx(1e4 * tau, rel=1e-6)


# the attack


class Linear(nn.Module):
    """Images of 3 x 4 x 4 pixels -> 5 features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(draws(48, 5, seed=11)).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight


@pytest.fixture
def attacked(index) -> tuple[Linear, Neighbours, torch.Tensor]:
    return Linear(), Neighbours(index.features.float() * 3, index.labels, 4, k=7), torch.rand(9, 3, 4, 4)


@pytest.mark.parametrize("guide", ["wrong-class", "balanced"])
def test_attack_stays_inside(attacked, guide):
    """A torchattacks attack on a bare module: pixel units, and no weight gradient."""
    model, index, images = attacked
    images[0], images[1] = 0.0, 1.0
    adversarial = PGDkNN(model, index, eps=EPS, alpha=2 / 255, steps=5, guides=6, guide=guide)(images, TARGETS)
    assert (adversarial - images).abs().max() <= EPS + 1e-6 and not adversarial.requires_grad
    assert adversarial.min() >= 0 and adversarial.max() <= 1 and model.weight.grad is None


def test_attack_follows_its_guides(attacked):
    """Without noise, one step along minus the sign of the gradient of the mean squared distance."""
    model, index, images = attacked
    images = images * 0.8 + 0.1
    positions, counted = index.wrong_class(model(images).detach(), TARGETS, 6)
    start = images.clone().requires_grad_()
    distances = (model(start)[:, None] - index.features[positions]).square().sum(2) * counted
    (gradient,) = torch.autograd.grad((distances.sum(1) / counted.sum(1)).sum(), start)
    found = PGDkNN(model, index, eps=EPS, alpha=2 / 255, steps=1, guides=6, random_start=False)(images, TARGETS)
    torch.testing.assert_close(found, images - 2 / 255 * gradient.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("guide", ["wrong-class", "balanced"])
def test_attack_succeeds_with_its_radius(attacked, guide):
    """Four well separated classes, and images of each."""
    model, images = attacked[0], 0.25 + torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
    centres = model(images[:4]).detach()
    spread = 0.1 * torch.from_numpy(draws(4, 20, 5, seed=5)).float()
    index = Neighbours((centres[:, None] + spread).flatten(0, 1), torch.arange(80) // 20, 4, k=7)
    fooled = []
    for eps in (0.0, 0.01, 0.5):
        torch.manual_seed(0)
        attack = PGDkNN(model, index, eps=eps, alpha=eps / 4, steps=20, guides=6, guide=guide, best=True)
        fooled.append((index.vote(model(attack(images[:4], torch.arange(4)))) != torch.arange(4)).sum().item())
    assert fooled[0] == 0 and fooled[0] <= fooled[1] <= fooled[2] and fooled[2] == 4, fooled


@pytest.mark.parametrize(("guide", "best"), [("balanced", None), ("wrong-class", True), ("wrong-class", None)])
def test_which_iterate_is_kept(attacked, guide, best):
    """That with most wrong neighbours; of guides of the wrong class, unless asked for otherwise, the last one."""
    model, index, images = attacked
    iterates = []

    class Watched(Linear):
        def forward(self, given):
            iterates.append(given.detach())
            return model(given)

    torch.manual_seed(0)
    attack = PGDkNN(Watched(), index, eps=0.2, alpha=0.1, steps=6, guides=6, guide=guide, best=best)
    kept = attack(images, TARGETS)
    if guide == "wrong-class" and best is None:
        assert len(iterates) == 7 and not any(torch.equal(kept, one) for one in iterates), "no search, and the last"
        return

    def wrong(given):
        return index.k - index.counts(model(given)).gather(1, TARGETS[:, None]).squeeze(1)

    after = iterates[2::2]  # the guides' images, then before and after each step
    assert len(after) == 6
    assert torch.equal(wrong(kept), torch.stack([wrong(one) for one in after]).amax(0))


# views


def test_view_without_change_is_the_image():
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(random_view(images, translate=0, min_scale=1.0, jitter=0.0, grey=0.0), images)


def test_shifted_views_move_whole_pixels():
    images = torch.rand(200, 3, 8, 8)
    torch.manual_seed(0)
    views = random_view(images, translate=2, min_scale=1.0, jitter=0.0, grey=0.0)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="symmetric")
    corners = [(y, x) for y in range(5) for x in range(5)]
    places = []
    for view, image in zip(views.numpy(), padded, strict=True):
        fits = [
            corner for corner in corners if np.allclose(view, image[:, corner[0] :, corner[1] :][:, :8, :8], atol=1e-5)
        ]
        assert len(fits) == 1
        places += fits
    assert set(places) == set(corners)
    assert places.count((2, 2)) / 200 == pytest.approx(0.2 + 0.8 / 25, abs=0.09)


def test_cropped_and_recoloured_views():
    images = torch.rand(300, 3, 8, 8)
    torch.manual_seed(0)
    for settings in ({"jitter": 0.4, "grey": 0.25, "min_scale": 1.0}, {"jitter": 0.0, "grey": 0.5, "min_scale": 0.3}):
        views = random_view(images, translate=0, **settings)
        assert views.shape == images.shape and views.min() >= 0 and views.max() <= 1
        grey = (views.amax(1) - views.amin(1)).flatten(1).amax(1) < 1e-4
        assert grey.double().mean().item() == pytest.approx(settings["grey"], abs=0.09)
    single = random_view(images[:, :1], translate=0, min_scale=1.0, jitter=0.4, grey=1.0)
    assert torch.equal(single, images[:, :1]), "one channel has no colours"


# features of timm networks


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "width", "maps"),
    [
        ("resnet18", {}, 32, 512, [("layer3", 256), ("layer2", 128)]),
        ("resnet18", {}, 224, 512, [("layer4", 512), ("layer3", 256)]),
        ("resnet18", SMALL, 8, 16, []),
        ("vit_tiny_patch16_224", {"depth": 3}, 224, 192, [("blocks.2", 192), ("blocks.1", 192)]),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}, 224, 384, [("blocks.1", 192), ("blocks.0", 192)]),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, 224, 768, [("layers.3", 768), ("layers.2", 384)]),
        ("resnetv2_50", {"layers": (1, 1, 1, 1)}, 224, 2048, [("stages.3", 2048), ("stages.2", 1024)]),
    ],
)
def test_layout(name, kwargs, size, width, maps):
    """Convolutions, tokens, two classifiers, channels last, and a convolution as classifier."""
    settings = {"image_size": size, "model_kwargs": kwargs, "data_mean": [0.5], "data_std": [0.25]}
    model = build_model(name, num_classes=3, **settings).eval()
    layout = find_layout(model)
    assert layout.width == width and [(layer.name, layer.channels) for layer in layout.maps] == maps
    images = torch.rand(2, 3, size, size)
    expected = model(images)
    with recorded(model, [layer.name for layer in layout.maps]) as seen:
        assert torch.equal(model(images), expected)
    shapes = [tuple(found.shape) for found in layout.pooled(seen)]
    assert shapes == [(2, maps[0][1], 5, 5), (2, maps[1][1], 7, 7)] if maps else [(2, width, 1, 1)]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.model.modules()]
    assert not any(hooks), "nothing stays behind"
    assert Encoder(model)(images).norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_vector_is_what_the_classifier_sees(small_model):
    model, images = small_model.eval(), torch.rand(4, 3, 8, 8)
    with recorded(model) as seen:
        logits = model(images)
    inner = model.model
    torch.testing.assert_close(
        seen.vector, inner.forward_head(inner.forward_features((images - model.mean) / model.std), True)
    )
    torch.testing.assert_close(inner.get_classifier()(seen.vector), logits)
    logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["model.fc.weight", "model.fc.bias"]


def test_transformer_maps_are_its_patch_tokens():
    model = build_model(
        "vit_tiny_patch16_224",
        num_classes=3,
        image_size=224,
        model_kwargs={"depth": 1, "embed_dim": 24, "num_heads": 2},
        data_mean=[0.5],
        data_std=[0.25],
    ).eval()
    layout = find_layout(model)
    with recorded(model, ["blocks.0"]) as seen:
        model(torch.rand(1, 3, 224, 224))
    tokens = seen.layers["blocks.0"]
    expected = F.adaptive_avg_pool2d(tokens[:, 1:].reshape(1, 14, 14, 24).permute(0, 3, 1, 2), 7)
    torch.testing.assert_close(layout.pooled(seen)[1], expected)


def test_networks_without_a_classifier_are_refused():
    model = build_model(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), num_classes=3, image_size=2, data_mean=[0.5], data_std=[1]
    )
    with pytest.raises(UserError, match="Sequential has no get_classifier"):
        find_layout(model)


# one step


def step_with(fooled: list[int], **args):
    """A bench's loss where the attack fooled these images."""
    bench = Bench.make("ssat", method_args={"steps": 1, **args})
    perturbed = bench.defense.perturb(bench.batch)
    mask = torch.zeros(16, dtype=torch.bool)
    mask[fooled] = True
    perturbed = replace(perturbed, extras={**perturbed.extras, "fooled": mask})
    return bench, perturbed, bench.defense.loss(bench.batch, perturbed)


@pytest.mark.parametrize(("fooled", "kept"), [([1, 4, 5, 11], [1, 4, 5, 11]), ([7], [7, 7])])
def test_only_successful_attacks_count(fooled, kept):
    """A single one twice. One forward pass of all clean and the successful adversarial images."""
    bench, perturbed, output = step_with(fooled)
    rows, count = torch.tensor(kept), len(kept)
    layout = bench.defense.layout
    with recorded(bench.model, [layer.name for layer in layout.maps]) as seen:
        logits = bench.model(torch.cat([bench.batch.images, perturbed.images[rows]]))
    both = torch.cat([rows, 16 + torch.arange(count)])
    maps = [
        head(found[both]).flatten(2)
        for head, found in zip(bench.run.auxiliary_model.heads, layout.pooled(seen), strict=True)
    ]
    clean = Features(seen.vector[rows], tuple(found[:count] for found in maps))
    adversarial = Features(seen.vector[16:], tuple(found[count:] for found in maps))
    information = information_loss(clean, adversarial, perturbed.extras["places"][:, rows])
    expected = information + F.cross_entropy(logits[:16], bench.batch.targets)
    torch.testing.assert_close(output["loss"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output["information"], information.detach(), rtol=1e-5, atol=1e-6)
    assert output["attack_success"].item() == pytest.approx(len(fooled) / 16)
    assert torch.equal(output["logits"].argmax(1), logits[:16].argmax(1))


def test_without_success_the_encoder_learns_nothing():
    bench, _, output = step_with([])
    output["loss"].backward()
    moved = [name for name, p in bench.model.named_parameters() if p.grad.abs().max() > 0]
    assert output["information"] == 0 and moved == ["model.fc.weight", "model.fc.bias"]
    assert all(p.grad.abs().max() == 0 for p in bench.run.auxiliary_model.parameters())


def test_labels_do_not_enter_the_encoders_loss():
    """They craft and select adversarial images, and teach the probe."""
    bench, perturbed, output = step_with([0, 2, 3])
    other = replace(bench.batch, targets=bench.batch.targets.flip(0))
    again = bench.defense.loss(other, perturbed)
    assert torch.equal(output["information"], again["information"])
    gradients = []
    for one in (output, again):
        bench.model.zero_grad()
        one["loss"].backward()
        gradients.append(bench.model.model.conv1.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_index_is_refreshed_after_so_many_batches():
    bench = Bench.make("ssat", method_args={"steps": 1, "index_refresh": 2})
    defense, saved = bench.defense, []
    bench.run.save = lambda folder, **about: saved.append((folder, about))
    defense.options = replace(defense.options, checkpoint_every=3)
    old, ages = defense.index.features.clone(), []
    for _ in range(4):
        bench.train(1)
        ages.append(torch.equal(old, defense.index.features))
        old = defense.index.features.clone()
    assert ages == [True, False, True, False]
    assert saved == [("steps/000003", {"step": 3})]
    bench.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(defense.index.features, Encoder(bench.model)(bench.batch.images))
    assert torch.equal(defense.index.labels, bench.batch.targets)


def test_success_is_judged_by_the_vote_in_eval_mode():
    bench = Bench.make("ssat", method_args={"steps": 2, "k": 3})
    perturbed = bench.defense.perturb(bench.batch)
    assert bench.model.training
    bench.model.eval()
    with torch.no_grad():
        votes = bench.defense.index.vote(Encoder(bench.model)(perturbed.images))
    assert torch.equal(perturbed.extras["fooled"], votes != bench.batch.targets)


@pytest.mark.parametrize("method", ["ssat", "ssat-pretrain"])
def test_compiled_networks_are_refused(method, train_small, tmp_path):
    with pytest.raises(UserError, match=f"'{method}' reads inner features, which torch.compile hides"):
        train_small(method, compile=True)
    assert not (tmp_path / "run/metrics.jsonl").exists()


# whole runs


NETWORK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
"""At 16 pixels it has both maps."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_digits):
    """Pre-training and fine-tuning, two epochs each, of 300 digits at 16 pixels; the first is run by the second."""
    folder = tmp_path_factory.mktemp("ssat")

    def run(name: str, **settings):
        args = {"steps": 2, "k": 15, "index_refresh": 2, "checkpoint_every": 2, **settings.pop("method_args", {})}
        return timm_robust.train(
            "resnet18",
            "ssat",
            few_digits,
            model_kwargs=NETWORK,
            image_size=16,
            epochs=2,
            batch_size=100,
            lr=0.001,
            method_args=args,
            recipe="digits",
            recipe_args={"check_attack": "pgd-2-1"},
            test_attacks=[],
            quiet=True,
            output=folder / name,
            **settings,
        )

    return run, run("whole")


def test_pre_training_comes_first(runs):
    """The encoder goes on from the last weights of ssat-pretrain, with its projections."""
    _, whole = runs
    encoder = whole.output / "encoder"
    assert json.loads((encoder / "manifest.json").read_text())["method"] == "ssat-pretrain"
    rows = [json.loads(line) for line in (encoder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[1]["train_information"] < rows[0]["train_information"]
    assert rows[0]["train_information"] > 10, "six terms"
    assert all(0 <= row["train_attack_success"] <= 1 for row in whole.history)
    assert whole.history[0]["train_information"] < rows[0]["train_information"]


def test_the_sequence_of_checkpoints(runs, few_digits):
    """Plain timm networks whose classifier is the probe; they load and are measured without the plugin."""
    _, whole = runs
    folders = sorted((whole.output / "steps").iterdir())
    assert [folder.name for folder in folders] == ["000002", "000004", "000006"]
    seen = []
    for number, folder in enumerate(folders, start=1):
        metadata = json.loads((folder / "model.json").read_text())
        assert metadata["step"] == 2 * number and metadata["method"] == "ssat" and metadata["threat"]["norm"] == "Linf"
        plain = timm.create_model("resnet18", num_classes=10, **metadata["model"]["model_kwargs"])
        weights = load_file(folder / "model.safetensors")
        plain.load_state_dict(weights)
        seen.append(weights["conv1.weight"])
        measured = timm_robust.evaluate(folder, few_digits, attacks=["pgd-2-1"], examples=50, quiet=True)
        assert 0 <= measured.clean_accuracy <= 1
    assert torch.equal(seen[-1], load_file(whole.output / "last" / "model.safetensors")["conv1.weight"])
    assert not torch.equal(seen[0], seen[1])


def test_resumed_run_ends_with_the_same_weights(runs, monkeypatch):
    run, whole = runs
    original = Engine._train_epoch

    def killed_in_second(self):
        if self.epoch == 1 and self.config.metadata["method"] == "ssat":
            raise Killed
        return original(self)

    # an index of three batches' age goes over the end of the epoch
    args = {"index_refresh": 4, "checkpoint_every": 0, "encoder": str(whole.output / "encoder")}
    other = run("other", method_args=args)
    monkeypatch.setattr(Engine, "_train_epoch", killed_in_second)
    with pytest.raises(Killed):
        run("killed", method_args=args)
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = run("killed", method_args=args, resume=True)
    one, two = (load_file(result.output / "last" / "model.safetensors") for result in (other, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert not (other.output / "steps").exists()


def test_any_run_may_be_the_encoder(runs, train_small, tmp_path, capsys):
    """One of another method has no projections; another network is refused by name."""
    train_small("standard", epochs=1)
    result = train_small(
        "ssat", output="two", epochs=1, quiet=False, method_args={"encoder": str(tmp_path / "run"), "steps": 1}
    )
    assert "has no projections" in "".join(capsys.readouterr()).replace("\n", " ") and len(result.history) == 1
    run, whole = runs
    with pytest.raises(UserError, match="activation"):
        run("relu", activation="silu", method_args={"encoder": str(whole.output / "encoder")})


def test_l2_is_refused(train_small):
    with pytest.raises(UserError, match="method 'ssat' knows the norm Linf only, not L2"):
        train_small("ssat", epochs=1, norm="L2", eps=0.5)


def test_honest_evaluation(runs, few_digits, tmp_path):
    _, whole = runs
    record = evaluate(
        whole.output / "steps" / "000006",
        few_digits,
        eps=["16/255"],
        n_examples=12,
        steps=3,
        queries=20,
        json=tmp_path / "record.json",
    )
    assert json.loads((tmp_path / "record.json").read_text()) == record
    found = record["radii"]["16/255"]
    assert list(found) == [*ON_VOTE, "worst", "autoattack"]
    assert record["k"] == 15 and record["database"] < 300 and record["n_examples"] == 12
    for name in ON_VOTE:
        assert 0 <= found["worst"]["accuracy"] <= found[name]["accuracy"] <= record["knn"]["clean_accuracy"]
        assert found[name]["accuracy"] == pytest.approx(record["knn"]["clean_accuracy"] * found[name]["dsr"], abs=1e-3)
    assert list(found["autoattack"]["after"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found["autoattack"]["accuracy"] <= record["surrogate"]["clean_accuracy"]
    assert 0 <= record["knn"]["credibility"] <= 1 and record["surrogate"]["agreement"] > 0.5


def test_defence_success_rate_and_radius(runs, few_digits):
    """1 without a radius by construction, and no higher for a larger one, up to an image."""
    _, whole = runs
    names = ["pgd-knn", "pgd-knn-balanced", "transfer"]
    record = evaluate(whole.output, few_digits, eps=[0, "8/255", "64/255"], attacks=names, n_examples=60, steps=5)
    for name in (*names, "worst"):
        rates = [found[name]["dsr"] for found in record["radii"].values()]
        right = 60 * record["knn"]["clean_accuracy"]
        assert rates[0] == 1 and all(later <= earlier + 1.01 / right for earlier, later in pairwise(rates))
        assert rates[2] < 1


def test_evaluation_by_its_command(runs, few_digits):
    _, whole = runs
    command = [sys.executable, "-m", "timm_robust_plugins.ssat.evaluate"]
    told = subprocess.run([*command, str(whole.output / "nothing")], capture_output=True, text=True)
    assert told.returncode != 0 and "Traceback" not in told.stderr and "does not exist" in told.stderr
    with pytest.raises(UserError, match="did you mean square"):
        evaluate(whole.output, few_digits, attacks=["squares"])


PROCESS = """
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from timm_robust.testing import Bench

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
bench = Bench.make("ssat", images=40)
seen = []

def unaugmented():
    for places in torch.arange(40).split(8):
        seen.append(places)
        yield replace(bench.batch, **{n: getattr(bench.batch, n)[places] for n in ("images", "targets", "index")})

bench.run.unaugmented = unaugmented
bench.defense.features.fill(0)
bench.defense.refresh()
torch.save((bench.defense.index.features, bench.defense.index.labels), f"{folder}/{rank}-of-{world}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_share_the_index(tmp_path: Path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    running = [
        subprocess.Popen([sys.executable, str(script), *place, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for place in (("0", "2"), ("1", "2"), ("0", "1"))
    ]
    complaints = [process.communicate(timeout=300)[1] for process in running]
    assert not any(process.returncode for process in running), complaints
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-2", "1-of-2", "0-of-1"))
    for one, two, three in zip(first, second, alone, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.slow
def test_robustness_rises_along_the_checkpoints(tmp_path):
    """Real digits: fine-tuning costs accuracy and gives robustness, under the worst of three attacks on the vote."""
    settings = {
        "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 64]},
        "batch_size": 100,
        "recipe_args": {"augment": "none"},  # a mirrored digit is another character
        "test_attacks": [],
        "quiet": True,
    }
    encoder = tmp_path / "encoder"
    timm_robust.train("resnet18", "ssat-pretrain", "digits", epochs=15, lr=1e-3, output=encoder, **settings)
    args = {"encoder": str(encoder), "checkpoint_every": 20, "index_refresh": 5}
    run = timm_robust.train(
        "resnet18",
        "ssat",
        "digits",
        eps="16/255",
        epochs=4,
        lr=5e-4,
        method_args=args,
        output=tmp_path / "run",
        **settings,
    )
    measured = [
        evaluate(folder, "digits", eps=["16/255", "32/255"], attacks=ON_VOTE[:3], n_examples=300)
        for folder in (encoder / "last", *sorted((run.output / "steps").iterdir()))
    ]
    clean = [record["knn"]["clean_accuracy"] for record in measured]
    near, far = ([record["radii"][eps]["worst"]["dsr"] for record in measured] for eps in ("16/255", "32/255"))
    print("clean", clean, "DSR at 16/255", near, "and 32/255", far)
    assert len(measured) == 3 and clean[0] > 0.6 and clean[-1] > 0.5
    assert near[-1] > near[0] + 0.1 and all(one >= other for one, other in zip(near, far, strict=True))
