"""RDED: patches, scores and the student, against formulas and loops written independently, and for real."""

from __future__ import annotations

import json
import math
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm_robust_plugins.kd_swa.kd_swa import distillation_loss
from timm_robust_plugins.rded.rded import Best, Framed, cell_sizes, ranks, realism, stitch
from timm_robust_plugins.rded.student import crop, cutmix, cutmix_box, region, shuffle_patches, strip_order
from torch import nn
from torchvision.transforms import RandomResizedCrop

import timm_robust
from tests.support import SMALL, distill_digits, distilled_content, patch_records
from timm_robust.data import load_data
from timm_robust.data.augment import apply_box
from timm_robust.recipes.presets import make_recipe
from timm_robust.runs.checkpoint import load
from timm_robust.testing import Bench
from timm_robust.training.optim import Schedule, build_optimizer

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


def test_images_are_pure_and_can_be_rebuilt_from_their_record(distilled):
    """Each image is the tiling of its patches, each cut out of a training image of its class where the record says."""
    train = load_data("digits", stream=True).train
    places = {train.name(i): i for i in range(len(train))}
    for line in patch_records(distilled):
        cells = []
        for patch in line["patches"]:
            place = places[patch["source"]]  # a training image: none is held out
            assert train.labels[place] == line["class"]
            cells.append(np.asarray(apply_box(train.images.read(place), tuple(patch["box"]), False, 4)))
        stored = np.asarray(Image.open(distilled / line["file"]))
        np.testing.assert_array_equal(stored, np.block([[[cells[0]], [cells[1]]], [[cells[2]], [cells[3]]]]))


def test_scores_are_the_observers_and_fall_with_rank(distilled, observer):
    model, train = load(observer), load_data("digits", stream=True).train
    framed, places = Framed(model, model.mean, 8), {train.name(i): i for i in range(len(train))}
    manifest = json.loads((distilled / "manifest.json").read_text())
    for number in range(10):
        own = [line["patches"] for line in patch_records(distilled) if line["class"] == number]
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


def test_soft_labels_are_the_observers_logits_of_whole_images(distilled, observer):
    labels = np.load(distilled / "soft_labels.npy")
    assert labels.shape == (30, 10) and labels.dtype == np.float16
    pixels = np.stack([np.asarray(Image.open(distilled / line["file"])) for line in patch_records(distilled)])
    with torch.no_grad():
        logits = load(observer)(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(labels, logits, rtol=2e-3, atol=2e-3)


def test_neither_workers_nor_batches_change_the_images(distilled, observer, tmp_path):
    distill_digits(observer, tmp_path / "other", workers=2, batch_size=35)
    assert {k: v for k, v in distilled_content(tmp_path / "other").items() if k.endswith("png")} == {
        k: v for k, v in distilled_content(distilled).items() if k.endswith("png")
    }
    distill_digits(observer, tmp_path / "seed", seed=1)
    assert distilled_content(tmp_path / "seed") != distilled_content(distilled)


def test_one_patch_is_the_default_for_small_images(observer, tmp_path):
    result = distill_digits(observer, tmp_path / "one", method_args={"pool": 20}, image_format="jpeg")
    assert result.manifest["settings"] == {"factor": 1}
    assert all(len(line["patches"]) == 1 and line["file"].endswith(".jpg") for line in patch_records(tmp_path / "one"))
    assert load_data(str(tmp_path / "one")).image_size == 8


def test_the_robust_score_is_lower_and_repeatable(observer, tmp_path):
    scores = {}
    for name, weight in (("plain", 0.0), ("half", 0.5), ("robust", 1.0), ("again", 1.0)):
        settings = {"factor": 1, "pool": 12, "robust": weight, "crops": 1, "attack_steps": 2}
        result = distill_digits(observer, tmp_path / name, method_args=settings)
        scores[name] = np.array([one["mean_score_of_crops"] for one in result.manifest["classes"]])
    assert (scores["robust"] < scores["half"]).all() and (scores["half"] < scores["plain"]).all()
    np.testing.assert_allclose(scores["half"], (scores["plain"] + scores["robust"]) / 2, rtol=1e-4)
    assert distilled_content(tmp_path / "robust") == distilled_content(tmp_path / "again")


def test_a_student_learns_from_the_observer_that_came_along(observer, tmp_path):
    small = str(distill_digits(observer, tmp_path / "small", ipc=10, method_args={}).output)

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


def test_a_robust_student(distilled, tmp_path, capsys):
    result = timm_robust.train(
        "resnet18", "rded-student", str(distilled), output=tmp_path / "run", epochs=2, recipe="rded-student",
        device="cpu", method_args={"adversarial": "5/6", "steps": 2}, recipe_args={"check_attack": "pgd-2-1"},
        model_kwargs=SMALL, test_attacks=[],
    )  # fmt: skip
    assert {"train_clean_loss", "train_adversarial_loss"} <= set(result.history[0])
    assert "the observer is a standard network" in capsys.readouterr().err
    assert result.history[0]["passes"] == pytest.approx(4, abs=0.1)  # two steps of the attack, clean and adversarial
