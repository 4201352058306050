"""GradAlign: its penalty and its second derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_robust_plugins.gradalign.gradalign import alignment_penalty, default_weight

from tests.support import EPS, curved, input_gradient, linear, on
from timm_robust.errors import UserError

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


# what the methods refuse


def test_compiling_is_refused_where_the_loss_holds_a_gradient(train_small, tmp_path):
    with pytest.raises(UserError, match="'gradalign' differentiates twice, which torch.compile cannot"):
        train_small("gradalign", compile=True)
    assert not (tmp_path / "run/metrics.jsonl").exists()
