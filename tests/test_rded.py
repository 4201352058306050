"""RDED: what its parts do, against formulas and loops written independently, and distilling and learning for real."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm_robust_plugins.kd_swa.kd_swa import distillation_loss
from timm_robust_plugins.rded.rded import Best, Framed, cell_sizes, ranks, realism, stitch
from timm_robust_plugins.rded.student import (
    crop,
    cutmix,
    cutmix_box,
    region,
    shuffle_patches,
    strip_order,
)
from torch import nn
from torchvision.transforms import RandomResizedCrop

import timm_robust
from timm_robust.api.distill import _classes
from timm_robust.cli import main
from timm_robust.data import add_extra, as_tensors, load_data
from timm_robust.data.augment import apply_box
from timm_robust.data.distilled import training_images
from timm_robust.distillation.observer import open_observer, probes, require_order
from timm_robust.errors import UserError
from timm_robust.models.class_order import ClassAlignedModel, class_columns
from timm_robust.models.factory import build_model
from timm_robust.recipes.presets import make_recipe
from timm_robust.runs.checkpoint import load, save_model
from timm_robust.testing import Bench
from timm_robust.training.optim import Schedule, build_optimizer

from .conftest import SMALL

STITCHED = {"factor": 2, "pool": 30}


# the parts of the distiller


def test_which_patch_goes_where():
    """Rank k * ipc + i is cell k of image i."""
    assert ranks(3, 2).tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert ranks(4, 1).tolist() == [[0], [1], [2], [3]]
    for ipc, factor in ((1, 1), (5, 3), (10, 2)):
        assert sorted(ranks(ipc, factor).ravel()) == list(range(ipc * factor**2))


@pytest.mark.parametrize(
    ("size", "factor", "sides"), [(224, 2, [112, 112]), (5, 2, [3, 2]), (32, 1, [32]), (8, 3, [3, 3, 2])]
)
def test_cells(size, factor, sides):
    assert cell_sizes(size, factor) == sides


def test_a_stitched_image_is_the_tiling_of_its_patches():
    patches = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3)).astype(np.uint8)
    image = stitch(patches, 12)
    np.testing.assert_array_equal(image, np.block([[[patches[0]], [patches[1]]], [[patches[2]], [patches[3]]]]))
    np.testing.assert_array_equal(stitch(patches[:1], 6), patches[0])


def test_patches_are_scaled_where_the_factor_does_not_divide():
    image = stitch(np.full((4, 2, 2, 3), 7, np.uint8), 5)
    assert image.shape == (5, 5, 3) and (image == 7).all()


def test_realism_is_minus_the_cross_entropy_and_tells_the_surest_apart():
    logits = torch.tensor([[1.0, 2.0, 3.0], [50.0, 1.0, 2.0], [60.0, 1.0, 2.0]])
    expected = [
        1 - math.log(sum(map(math.exp, (1, 2, 3)))),
        -(math.exp(-49) + math.exp(-48)),
        -(math.exp(-59) + math.exp(-58)),
    ]
    np.testing.assert_allclose(realism(logits, 0).numpy()[0], expected[0], rtol=1e-12)
    assert F.cross_entropy(logits[1:2], torch.tensor([0])).item() == 0  # in float32 both are perfect
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0]])
    np.testing.assert_allclose(realism(logits, 0).numpy(), [-math.exp(-20), -math.exp(-25)], rtol=1e-5)


def test_patches_are_framed_in_the_mean_colour_after_normalisation(small_model):
    model = small_model.eval()
    patches = torch.rand(3, 3, 4, 4)
    normalised = (patches - model.mean) / model.std
    expected = model.model(F.pad(normalised, (2, 2, 2, 2)))
    torch.testing.assert_close(Framed(model, model.mean, 8)(patches), expected, rtol=1e-4, atol=1e-5)
    whole = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(Framed(model, model.mean, 8)(whole), model(whole))


def test_the_best_are_those_of_a_sort_over_everything_and_memory_does_not_grow():
    random = np.random.default_rng(1)
    scores = random.standard_normal((200, 5)).round(1)  # with ties
    boxes, pixels = random.integers(0, 99, (200, 5, 4)), random.integers(0, 256, (200, 5, 2, 2, 3)).astype(np.uint8)
    places = random.permutation(200)
    best = Best(12)
    for start in range(0, 200, 16):
        part = slice(start, start + 16)
        best.add(scores[part], places[part], boxes[part], pixels[part])
        assert len(best) <= 12 and len(best.pixels) <= 12 and best.pixels.base is None
    order = sorted(range(200), key=lambda i: (-scores[i].max(), places[i]))[:12]
    assert best.places.tolist() == [places[i] for i in order]
    assert best.scores.tolist() == [scores[i].max() for i in order]
    for rank, i in enumerate(order):
        first = int(np.flatnonzero(scores[i] == scores[i].max())[0])
        np.testing.assert_array_equal(best.boxes[rank], boxes[i, first])
        np.testing.assert_array_equal(best.pixels[rank], pixels[i, first])
    assert best.seen == 200 and best.total / best.crops == pytest.approx(scores.mean())


# the observer


def test_classes_are_matched_by_name():
    assert class_columns(["a", "b"], ["a", "b"], 2, owner="x") is None
    assert class_columns(["a", "b", "c"], ["c", "a"], 3, owner="x") == [2, 0]
    assert class_columns(None, ["c", "a"], 2, owner="x") is None
    assert class_columns(["0", "1"], ["cat", "dog"], 2, owner="x") is None
    with pytest.raises(UserError, match="x was trained on 3 classes, this data has 2"):
        class_columns(["a", "b", "c"], ["c", "d"], 3, owner="x")


def test_an_observer_answers_in_the_order_of_the_data(small_model):
    images, model = torch.rand(2, 3, 8, 8), small_model.eval()
    torch.testing.assert_close(ClassAlignedModel(model, [3, 1])(images), model(images)[:, [3, 1]])
    torch.testing.assert_close(ClassAlignedModel(model)(images), model(images))


def predicted(targets, accuracy, seed=0):
    random = np.random.default_rng(seed)
    return np.where(
        random.random(len(targets)) < accuracy, targets, random.integers(0, targets.max() + 1, len(targets))
    )


@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.95])
def test_an_observer_that_knows_the_classes_is_taken(accuracy):
    for classes, each in ((10, 20), (100, 20), (1000, 4), (2, 20)):
        targets = np.random.default_rng(1).permutation(np.repeat(np.arange(classes), each))
        found = predicted(targets, max(accuracy, 0.6) if classes == 2 else accuracy)
        names = [f"c{number}" for number in range(classes)]
        assert require_order(found, targets, names, owner="x") == pytest.approx(np.mean(found == targets))


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_another_order_of_the_classes_is_refused(classes):
    targets = np.repeat(np.arange(classes), 4 if classes == 1000 else 20)
    names = [f"c{number}" for number in range(classes)]
    with pytest.raises(UserError, match=r"x has its classes in another order .* right on \d\.\d% of"):
        require_order((predicted(targets, 0.8) + 1) % classes, targets, names, owner="x")


def test_two_classes_that_changed_places_are_refused():
    targets = np.repeat(np.arange(10), 20)
    swapped = np.array([0, 1, 2, 5, 4, 3, 6, 7, 8, 9])
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with pytest.raises(UserError, match=r"what it calls '(cat|dog)' is mostly '(cat|dog)'"):
        require_order(swapped[predicted(targets, 0.95)], targets, names, owner="x")


def test_chance_is_refused():
    targets = np.repeat(np.arange(10), 20)
    with pytest.raises(UserError, match="cannot be told from chance"):
        require_order(predicted(targets, 0.0, seed=3), targets, [str(n) for n in range(10)], owner="x")


def test_probes_have_images_of_every_class():
    val = load_data("digits", stream=True).val
    chosen = probes(val)
    counts = np.bincount(chosen.labels)
    assert len(counts) == 10 and counts.min() >= 4 and counts.max() <= 20
    assert [chosen.name(i) for i in range(3)] == [val.name(i) for i in range(len(val))][:3]


# the parts of the student


def test_the_rate_ends_at_half():
    """The released code's 0.5 (1 + cos(pi e / 600)), which is 0.5026 in the last epoch."""
    recipe = make_recipe("rded-student", {}, {})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule, steps = Schedule(optimizer, recipe, 2), 2
    for epoch in range(recipe.epochs):
        rate = optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / 600)), rel=1e-9)
        if epoch in (0, 100, 150, 200, 299):
            expected = {0: 1.0, 100: 0.93, 150: 0.85, 200: 0.75, 299: 0.5026}[epoch]
            assert rate / recipe.lr == pytest.approx(expected, abs=0.005 if epoch != 299 else 5e-5)
        for _ in range(steps):
            optimizer.step()
            schedule.step()


def test_a_plain_cosine_still_ends_at_nothing():
    recipe = make_recipe("default", {}, {"schedule": "cosine", "epochs": 4})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = Schedule(optimizer, recipe, 5)
    for _ in range(20):
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)


def test_the_optimizer_of_the_released_code(small_model):
    optimizer = build_optimizer(small_model, make_recipe("rded-student", {}, {}))
    assert type(optimizer).__name__ == "AdamW" and optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    decays = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.01, False: 0.0}


def test_with_one_patch_only_mirrors_and_cutmix_are_left():
    """The recipe mirrors; a region of at least the whole image is the whole image, and nothing is shuffled."""
    assert make_recipe("rded-student", {}, {}).augment == "flip"
    top, left, height, width = region(32, 1.0, torch.rand(4, 10, 500))
    assert (top == 0).all() and (left == 0).all() and (height == 32).all() and (width == 32).all()
    bench = Bench.make("rded-student", method_args={"mix": "none", "factor": 1})
    assert torch.equal(bench.defense.augment(bench.batch).images, bench.batch.images)
    torch.manual_seed(5)
    mixed = Bench.make("rded-student").defense.augment(bench.batch).images
    changed = (mixed != bench.batch.images).any(1)
    rows, columns = changed.any(2), changed.any(1)  # of those that were not their own partner
    boxes = {(tuple(r.tolist()), tuple(c.tolist())) for r, c in zip(rows, columns, strict=True) if r.any()}
    assert len(boxes) <= 1  # one box for the whole batch


def test_shuffled_strips():
    image = torch.arange(1 * 3 * 6 * 6).float().view(1, 3, 6, 6)
    arrangements = set()
    for keys in permutations(range(3)):
        rows = strip_order(6, 3, torch.tensor([keys]).float())
        columns = torch.arange(6)[None]
        got = shuffle_patches(image, rows, columns)
        strips = image.split(2, dim=2)
        expected = torch.cat([strips[i] for i in np.argsort(keys)], dim=2)
        assert torch.equal(got, expected)
        assert torch.equal(
            shuffle_patches(image, columns, rows).transpose(2, 3)[0, 0],
            shuffle_patches(image.transpose(2, 3), rows, columns)[0, 0],
        )
        arrangements.add(tuple(rows[0].tolist()))
    assert len(arrangements) == 6
    assert strip_order(5, 2, torch.tensor([[1.0, 0.0]])).tolist() == [[3, 4, 0, 1, 2]]  # uneven strips


def test_regions_are_those_of_torchvisions_random_resized_crop():
    top, left, height, width = region(64, 0.5, torch.rand(4, 10, 4000, generator=torch.Generator().manual_seed(0)))
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 64).all() and (left + width <= 64).all()
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(torch.empty(3, 64, 64), [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor(drawn).float().t()
    for one, other in zip((top, left, height, width, height * width), (*theirs, theirs[2] * theirs[3]), strict=True):
        error = (one.var() / 4000 + other.var() / 4000).sqrt()
        assert abs(one.mean() - other.mean()) < 4 * error
        assert one.std().item() == pytest.approx(other.std().item(), rel=0.06)


def test_a_crop_is_torchs_own_interpolation():
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    boxes = [(0, 0, 16, 16), (3, 5, 11, 9), (8, 2, 8, 14)]
    top, left, height, width = (torch.tensor(column).double() for column in zip(*boxes, strict=True))
    got = crop(images, top, left, height, width)
    for image, one, (t, le, h, w) in zip(images, got, boxes, strict=True):
        part = image[None, :, t : t + h, le : le + w]
        expected = F.interpolate(part, (16, 16), mode="bilinear", align_corners=False, antialias=True)[0]
        torch.testing.assert_close(one, expected)


def test_the_box_of_cutmix():
    for share, centre in ((0.3, (0.5, 0.5)), (0.9, (0.0, 0.99)), (0.0, (0.2, 0.7)), (1.0, (0.5, 0.5))):
        side = int(32 * math.sqrt(1 - share))  # as the published code has it
        row, column = (int(32 * at) for at in centre)
        expected = [np.clip(at + sign * (side // 2), 0, 32) for sign in (-1, 1) for at in (row, column)]
        assert list(cutmix_box(32, share, centre)) == expected
    images = torch.rand(4, 3, 8, 8)
    before, partner = images.clone(), torch.tensor([1, 0, 3, 2])
    mixed = cutmix(images, partner, (2, 3, 5, 7))
    assert torch.equal(images, before)
    assert torch.equal(mixed[0, :, 2:5, 3:7], images[1, :, 2:5, 3:7])
    mixed[:, :, 2:5, 3:7] = images[:, :, 2:5, 3:7]
    assert torch.equal(mixed, images)


def test_the_loss_against_its_formula():
    random = np.random.default_rng(0)
    student, teacher = random.standard_normal((2, 8, 10)) * 5

    def softened(logits):
        powers = np.exp(logits / 20 - (logits / 20).max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    p, q = softened(student), softened(teacher)
    published = (q * np.log(q / p)).sum(1).mean()  # "batchmean", without the square of the temperature
    got = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature=20.0)
    assert got.item() == pytest.approx(400 * published, rel=1e-10)


def test_adamw_does_not_notice_the_square_of_the_temperature():
    ends = []
    for factor in (1.0, 1 / 400):
        torch.manual_seed(0)
        layer, images, teacher = nn.Linear(20, 10), torch.rand(16, 20), torch.randn(16, 10)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.01)
        for _ in range(10):
            optimizer.zero_grad()
            (factor * distillation_loss(layer(images), teacher, temperature=20.0)).backward()
            optimizer.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-4)  # of a way of up to 1e-2; the rest is AdamW's epsilon


def test_labels_are_the_observers_for_the_very_view():
    bench = Bench.make("rded-student", method_args={"factor": 2})
    perturbed, output = bench.step()
    assert perturbed.images is bench.batch.images and bench.batch.view is None and not bench.defense.adversarial
    expected = bench.run.teachers["observer"](bench.batch.images)
    torch.testing.assert_close(perturbed.extras["labels"], expected)
    bench.model.eval()
    loss = bench.defense.loss(bench.batch, perturbed)["loss"]
    torch.testing.assert_close(loss, distillation_loss(bench.model(bench.batch.images), expected, temperature=20.0))
    assert "clean_loss" not in output


@pytest.mark.parametrize("weight", [5 / 6, 1.0])
def test_the_adversarial_student(weight):
    bench = Bench.make("rded-student", method_args={"adversarial": weight, "steps": 3})
    bench.train(2)
    bench.model.eval()
    perturbed, output = bench.step()
    assert bench.defense.adversarial
    far = (perturbed.images - bench.batch.images).abs().max().item()
    assert 0 < far <= bench.run.threat.eps + 1e-6
    labels = bench.run.teachers["observer"](bench.batch.images)

    def distance(images, temperature):
        return distillation_loss(bench.model(images), labels, temperature=temperature)

    clean, adversarial = distance(bench.batch.images, 20.0), distance(perturbed.images, 20.0)
    torch.testing.assert_close(output["loss"], (1 - weight) * clean + weight * adversarial)
    assert distance(perturbed.images, 1.0) > distance(bench.batch.images, 1.0)


# distilling and learning, for real


@pytest.fixture(scope="module")
def observer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rded") / "observer"
    settings = {"lr": 0.01, "epochs": 8, "recipe_args": {"check_attack": "clean"}, "test_attacks": [], "quiet": True}
    result = timm_robust.train("resnet18", "standard", "digits", model_kwargs=SMALL, output=folder, **settings)
    assert max(row["val_clean"] for row in result.history) > 0.6
    return folder


@pytest.fixture(scope="module")
def small(observer) -> Path:
    """Three stitched images for each digit."""
    folder = observer.parent / "small"
    result = distill(observer, folder)
    assert result.output == folder and "30 images of 8 pixels, 3 for each of 10 classes" in repr(result)
    return folder


def distill(observer, folder, data="digits", **settings):
    defaults = {"ipc": 3, "method_args": STITCHED, "workers": 0, "device": "cpu", "quiet": True}
    return timm_robust.distill(data, observer=observer, output=folder, **{**defaults, **settings})


def content(folder: Path) -> dict[str, bytes]:
    """What distilling made, but for what tells when and how."""
    files = [*folder.glob("train/*/*"), folder / "patches.jsonl", folder / "soft_labels.npy"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "patches.jsonl").read_text().splitlines()]


def test_the_folder(small):
    manifest = json.loads((small / "manifest.json").read_text())
    assert sorted(path.name for path in small.iterdir()) == [
        "manifest.json",
        "observer",
        "patches.jsonl",
        "soft_labels.npy",
        "train",
    ]
    assert manifest["complete"] and manifest["settings"] == {"factor": 2} and manifest["images"] == 30
    assert manifest["source"]["data"] == "digits" and manifest["seed"] == 0 and manifest["observer"]["accuracy"] > 0.6
    assert [(one["name"], one["folder"], one["observer_class"]) for one in manifest["classes"]] == [
        (str(n), str(n), n) for n in range(10)
    ]
    assert {"reading", "scoring", "writing"} == set(manifest["seconds"])
    assert all(len(list((small / "train" / str(n)).glob("*.png"))) == 3 for n in range(10))


def test_images_are_pure_and_can_be_rebuilt_from_their_record(small):
    """Each image is the tiling of its patches, each cut out of a training image of its class where the record says."""
    train = load_data("digits", stream=True).train
    places = {train.name(i): i for i in range(len(train))}
    for line in lines(small):
        cells = []
        for patch in line["patches"]:
            place = places[patch["source"]]  # a training image: none is held out
            assert train.labels[place] == line["class"]
            cells.append(np.asarray(apply_box(train.images.read(place), tuple(patch["box"]), False, 4)))
        stored = np.asarray(Image.open(small / line["file"]))
        np.testing.assert_array_equal(stored, np.block([[[cells[0]], [cells[1]]], [[cells[2]], [cells[3]]]]))


def test_scores_are_the_observers_and_fall_with_rank(small, observer):
    model, train = load(observer), load_data("digits", stream=True).train
    framed, places = Framed(model, model.mean, 8), {train.name(i): i for i in range(len(train))}
    manifest = json.loads((small / "manifest.json").read_text())
    for number in range(10):
        own = [line["patches"] for line in lines(small) if line["class"] == number]
        by_rank = [own[image][cell] for cell in range(4) for image in range(3)]
        scores = [patch["score"] for patch in by_rank]
        assert scores == sorted(scores, reverse=True)
        assert len({patch["source"] for patch in by_rank}) == 12  # one patch of each real image
        about = manifest["classes"][number]
        assert about["mean_score_of_kept"] == pytest.approx(np.mean(scores), rel=1e-4)
        assert about["mean_score_of_kept"] > about["mean_score_of_crops"] and about["images"] == 30
        image = train.images.read(places[by_rank[0]["source"]])
        pixels = np.array(apply_box(image, tuple(by_rank[0]["box"]), False, 4))
        logits = framed(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
        assert -F.cross_entropy(logits, torch.tensor([number])).item() == pytest.approx(scores[0], rel=1e-3, abs=1e-6)


def test_soft_labels_are_the_observers_logits_of_whole_images(small, observer):
    labels = np.load(small / "soft_labels.npy")
    assert labels.shape == (30, 10) and labels.dtype == np.float16
    pixels = np.stack([np.asarray(Image.open(small / line["file"])) for line in lines(small)])
    with torch.no_grad():
        logits = load(observer)(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(labels, logits, rtol=2e-3, atol=2e-3)


def test_validation_and_test_images_are_the_real_ones(small):
    real, few = load_data("digits"), load_data(str(small))
    assert len(few.train) == 30 and few.image_size == 8 and few.class_names == real.class_names
    assert torch.equal(few.test.pixels, real.test.pixels) and (few.test.labels == real.test.labels).all()
    assert torch.equal(few.val.pixels, real.val.pixels) and (few.val.labels == real.val.labels).all()
    other = load_data(str(small), seed=5)  # what is held out is the distillation's, whatever the run's seed
    assert torch.equal(other.val.pixels, real.val.pixels)


def test_as_extra_data(small):
    bundle = add_extra(load_data("digits"), str(small), 0.3)
    assert len(bundle.extra.split) == 30 and np.bincount(bundle.extra.split.labels).tolist() == [3] * 10


KILLED = """
import os, signal, sys
import timm_robust, timm_robust.api.distill as module
write, done = module._Work.write, []
def killed(self, made):
    if len(done) == 4:  # in the middle of the fifth class
        (self.path / "train/4").mkdir(parents=True)
        (self.path / "train/4/00000.png").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(made)
    write(self, made)
module._Work.write = killed
timm_robust.distill("digits", observer=sys.argv[1], output=sys.argv[2], ipc=3, quiet=True, workers=0,
                    device="cpu", method_args={"factor": 2, "pool": 30})
"""


def test_a_killed_distillation_goes_on_to_the_same_files(small, observer, tmp_path):
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(observer), str(folder)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    with pytest.raises(UserError, match="is not distilled to the end: timm-robust distill --resume --output"):
        load_data(str(folder))
    with pytest.raises(UserError, match="started with ipc=3, not 4"):
        distill(observer, folder, ipc=4, resume=True)
    untouched = {path: path.stat().st_mtime_ns for n in range(4) for path in (folder / f"train/{n}").iterdir()}
    distill(observer, folder, resume=True)
    assert content(folder) == content(small)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    again = distill(observer, folder, resume=True)  # nothing is left to do
    assert again.record["complete"] and not (folder / ".parts").exists()


def test_two_processes_make_the_same_files_as_one(small, observer, tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *(
            "--rdzv-endpoint=localhost:0",
            "-m",
            "timm_robust",
            "distill",
            "--data",
            "digits",
            "--observer",
            str(observer),
        ),
        *(
            "--ipc",
            "3",
            "-o",
            "factor=2",
            "pool=30",
            "--workers",
            "0",
            "--device",
            "cpu",
            "--output",
            str(tmp_path / "two"),
        ),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two") == content(small)
    assert json.loads((tmp_path / "two/manifest.json").read_text())["processes"] == 2


def test_neither_workers_nor_batches_change_the_images(small, observer, tmp_path):
    distill(observer, tmp_path / "other", workers=2, batch_size=35)
    assert {k: v for k, v in content(tmp_path / "other").items() if k.endswith("png")} == {
        k: v for k, v in content(small).items() if k.endswith("png")
    }
    distill(observer, tmp_path / "seed", seed=1)
    assert content(tmp_path / "seed") != content(small)


def test_one_patch_is_the_default_for_small_images(observer, tmp_path):
    result = distill(observer, tmp_path / "one", method_args={"pool": 20}, image_format="jpeg")
    assert result.record["settings"] == {"factor": 1}
    assert all(len(line["patches"]) == 1 and line["file"].endswith(".jpg") for line in lines(tmp_path / "one"))
    assert load_data(str(tmp_path / "one")).image_size == 8


def test_the_robust_score_is_lower_and_repeatable(observer, tmp_path):
    scores = {}
    for name, weight in (("plain", 0.0), ("half", 0.5), ("robust", 1.0), ("again", 1.0)):
        settings = {"factor": 1, "pool": 12, "robust": weight, "crops": 1, "attack_steps": 2}
        result = distill(observer, tmp_path / name, method_args=settings)
        scores[name] = np.array([one["mean_score_of_crops"] for one in result.record["classes"]])
    assert (scores["robust"] < scores["half"]).all() and (scores["half"] < scores["plain"]).all()
    np.testing.assert_allclose(scores["half"], (scores["plain"] + scores["robust"]) / 2, rtol=1e-4)
    assert content(tmp_path / "robust") == content(tmp_path / "again")


def test_random_images_are_whole_and_never_held_out(observer, tmp_path):
    result = distill(observer, tmp_path / "random", method="random", method_args={})
    train = load_data("digits", stream=True).train
    places = {train.name(i): i for i in range(len(train))}
    assert result.record["images"] == 30
    for line in lines(tmp_path / "random"):
        (patch,) = line["patches"]
        assert patch["box"] == [0, 0, 8, 8] and train.labels[places[patch["source"]]] == line["class"]
        stored = np.asarray(Image.open(tmp_path / "random" / line["file"]))
        np.testing.assert_array_equal(stored, np.asarray(train.images.read(places[patch["source"]])))


def test_a_student_learns_from_the_observer_that_came_along(observer, tmp_path):
    small = str(distill(observer, tmp_path / "small", ipc=10, method_args={}).output)

    def student(output, epochs, **options):
        recipe = {"augment": "none", "lr": 0.01}  # a mirrored digit is another character
        return timm_robust.train(
            "resnet18", "rded-student", small, output=tmp_path / output, recipe="rded-student", epochs=epochs,
            recipe_args=recipe, method_args=options, model_kwargs=SMALL, test_attacks=["clean"], device="cpu",
            quiet=True,
        )  # fmt: skip

    result = student("run", 40)
    assert not (tmp_path / "run/observer").exists()  # none was trained
    assert result.evaluation.n_examples == 360 and result.evaluation.clean_accuracy > 0.4
    named = student("named", 1, observer=str(observer))
    assert named.history[0]["train_loss"] == student("own", 1).history[0]["train_loss"]


def test_a_robust_student(small, tmp_path, capsys):
    result = timm_robust.train(
        "resnet18", "rded-student", str(small), output=tmp_path / "run", epochs=2, recipe="rded-student", device="cpu",
        method_args={"adversarial": "5/6", "steps": 2}, recipe_args={"check_attack": "pgd-2-1"}, model_kwargs=SMALL,
        test_attacks=[],
    )  # fmt: skip
    assert {"train_clean_loss", "train_adversarial_loss"} <= set(result.history[0])
    assert "the observer is a standard network" in capsys.readouterr().err
    assert result.history[0]["passes"] == pytest.approx(4, abs=0.1)  # two steps of the attack, clean and adversarial


def test_large_images_stream_and_broken_ones_are_left_out(tmp_path, monkeypatch):
    """Four patches above 64 pixels, of images of any shape; the folder's own validation split is kept."""
    digits = load_data("digits", stream=True).train
    for split, each in (("train", 9), ("val", 4), ("test", 4)):
        for number in range(3):
            (tmp_path / "data" / split / f"c{number}").mkdir(parents=True)
            for i, place in enumerate(np.flatnonzero(digits.labels == number)[:each]):
                image = digits.images.read(int(place)).resize((90, 76 + i))
                image.save(tmp_path / "data" / split / f"c{number}" / f"{i}.jpg")
    (tmp_path / "data/train/c1/8.jpg").write_bytes(b"no image")
    model = build_model(
        "resnet18", num_classes=3, image_size=72, model_kwargs=SMALL, data_mean=[0.5] * 3, data_std=[0.5] * 3
    )
    names = ["c2", "c0", "c1"]  # another order, which the names tell
    save_model(tmp_path / "observer", model, {"data": {"class_names": names}})
    monkeypatch.setattr("timm_robust.distillation.observer.require_order", lambda *args, **kwargs: 0.5)
    with pytest.warns(UserWarning, match=r"train/c1/8.jpg cannot be read and is left out"):
        result = distill(
            tmp_path / "observer", tmp_path / "small", str(tmp_path / "data"), ipc=2, method_args={}, precision="bf16"
        )
    assert result.record["settings"] == {"factor": 2} and result.record["held_out"] is None
    assert [one["observer_class"] for one in result.record["classes"]] == [1, 2, 0]
    assert [one["images"] for one in result.record["classes"]] == [9, 8, 9]
    few = load_data(str(tmp_path / "small"))
    assert not few.train.resident and few.image_size == 72 and (len(few.val), len(few.test)) == (12, 12)
    assert Image.open(next((tmp_path / "small").glob("train/c0/*.png"))).size == (72, 72)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="class 'c1' has only 8 readable images of the 9"):
        distill(
            tmp_path / "observer",
            tmp_path / "more",
            str(tmp_path / "data"),
            ipc=1,
            method_args={"factor": 3, "pool": 9},
        )


def test_a_timm_name_is_an_observer_of_imagenet(monkeypatch):
    """Its classes have WordNet numbers, so that folders with some of them find theirs."""
    monkeypatch.setattr(
        "timm_robust.distillation.observer.build_model", lambda *a, **k: build_model(*a, **{**k, "pretrained": False})
    )
    network, metadata = open_observer("resnet18")
    names = metadata["data"]["class_names"]
    assert network.config.num_classes == 1000 and network.config.image_size == 224 and not network.training
    assert class_columns(names, ["n01440764", "n02102040"], 1000, owner="x") == [0, 217]  # of ImageNette
    assert class_columns(names, names, 1000, owner="x") is None


def test_an_observer_in_another_order_is_refused(observer, tmp_path):
    bundle = load_data("digits")
    train, test = as_tensors(bundle.train), as_tensors(bundle.test)
    turned = tuple((images, (labels + 1) % 10) for images, labels in (train, test))
    with pytest.raises(UserError, match="has its classes in another order than the data"):
        distill(observer, tmp_path / "turned", data=turned)
    assert not (tmp_path / "turned").exists()


def test_python_objects_can_be_distilled_and_say_that_they_are_not_found_again(observer, few_digits, tmp_path):
    distill(observer, tmp_path / "arrays", data=few_digits, ipc=2, method_args={"pool": 15})
    with pytest.raises(UserError, match="was distilled from Python objects"):
        load_data(str(tmp_path / "arrays"))


def test_classes_keep_their_order_and_folders_are_safe(tmp_path):
    names = [str(number) for number in range(12)]
    entries = _classes(names, None)
    for entry in entries:
        (tmp_path / "train" / entry["folder"]).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / entry["folder"] / "00000.png")
    found, images = training_images(tmp_path, "x", {"complete": True, "classes": entries})
    assert found == tuple(names) and images.images.paths[2] == "train/2/00000.png"  # sorted, 10 would come before 2
    for bad in (["a/b", "c"], ["..", "c"], ["A", "a"], [".x", "y"]):
        assert [entry["folder"] for entry in _classes(bad, None)] == ["00000", "00001"]


def test_a_source_that_moved(small, tmp_path):
    moved = tmp_path / "moved"
    (moved / "train").mkdir(parents=True)
    record = json.loads((small / "manifest.json").read_text())
    for entry in record["classes"]:
        (moved / "train" / entry["folder"]).symlink_to(small / "train" / entry["folder"])
    record["source"]["data"] = str(tmp_path / "gone")
    (moved / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="validation and test images of .* are those of .*gone"):
        load_data(str(moved))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no observer: name a run's folder"),
        (
            ["--observer", "resnet19"],
            "observer 'resnet19' is neither a checkpoint nor a timm model: did you mean resnet1",
        ),
        (["--observer", "."], "holds no checkpoint"),
        (["--observer", "OBSERVER", "--ipc", "0"], "ipc is 0"),
        (
            ["--observer", "OBSERVER", "--ipc", "100", "-o", "factor=2"],
            "raise the option 'pool', or lower ipc or factor",
        ),
        (["--observer", "OBSERVER", "--ipc", "200"], "has 12"),
        (["--observer", "OBSERVER", "-o", "factor=9"], "have no room for that many"),
        (["--observer", "OBSERVER", "-o", "factr=2"], "did you mean factor"),
        (["--observer", "OBSERVER", "--method", "rdet"], "unknown distiller 'rdet': did you mean rded"),
        (["--observer", "OBSERVER", "--method", "random", "--ipc", "5000"], "lower ipc, which is 5000"),
        (["--observer", "OBSERVER", "--format", "pnk"], "did you mean png"),
        (["--observer", "OBSERVER", "--image-size", "16"], "was trained on 8 pixels, image_size is 16"),
        (["--observer", "OBSERVER", "--data", "digitz"], "did you mean digits"),
        (["--observer", "OBSERVER", "--precision", "half"], "unknown precision 'half'"),
        (["--resume", "--observer", "OBSERVER"], "resume needs the folder of the distillation"),
        (["--resume", "--output", "nothing"], "nothing to resume in nothing"),
        (["--resume", "--output", "OBSERVER"], "holds a run and no distillation"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, sentence, observer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["timm-robust", "distill", *arguments]
    monkeypatch.setattr(sys, "argv", [str(observer) if word == "OBSERVER" else word for word in command])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and sentence in told and "Traceback" not in told and told.count("\n") == 0, told
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_distillation_is_not_resumed_as_a_run(small):
    with pytest.raises(UserError, match="holds a distillation and no run"):
        timm_robust.train("resnet18", "standard", output=small, resume=True)


def test_a_folder_with_a_distillation_is_not_overwritten(small, observer):
    with pytest.raises(UserError, match="holds another distillation: continue it with --resume"):
        distill(observer, small)
