"""ATAS: adaptive steps, carried perturbations and their window, against formulas and loops by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm_robust_plugins.atas.atas import CarriedStep, adaptive_step

from tests.support import EPS, curved, input_gradient, into_ball, network_and_images, on
from timm_robust.defense import Perturbed
from timm_robust.errors import UserError
from timm_robust.testing import Bench


def test_atas_starts_inside_a_ball_smaller_than_when_it_drew():
    model, images, labels = network_and_images(0)
    attack = CarriedStep(model, 0.02, decay=0.5, soft_norm=1.0, numerator=0.01, low=0.001, high=0.01)
    carried, average = 0.06 * torch.rand_like(images) - 0.03, torch.zeros(40, dtype=torch.float64)
    found = [attack(images, labels, start, average, True) for start in (carried, carried.clamp(-0.02, 0.02))]
    assert torch.equal(*found) and (carried.abs() > 0.02).any()


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
