"""Cutout and IDBH: each operation against PIL and torchvision, and the loaders that use them."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor

from tests.support import same_batches
from timm_robust.data import DataBundle, as_tensors, idbh, load_data, make_train_loader
from timm_robust.data.augment import BATCHED, below, blank, cutout_boxes, uniforms
from timm_robust.data.augmentations import AUGMENTATIONS
from timm_robust.data.bundle import Split
from timm_robust.errors import UserError

NEW = ("cutout", "idbh-weak", "idbh-strong", "idbh-svhn")


RANDOM = np.random.RandomState(0)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """uint8 [N, 32, 32, 3]: enlarged digits (few grey levels), noise, smooth colours, and flat images."""
    digits = (as_tensors(load_data("digits").test, 40)[0] * 255).round().byte()
    large = torch.nn.functional.interpolate(digits, 32).permute(0, 2, 3, 1).numpy()
    noise = RANDOM.randint(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    small = RANDOM.randint(20, 200, (80, 4, 4, 3), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in small])
    flat = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 7, 255)])
    return np.concatenate([large, noise, smooth, flat])


@pytest.fixture(scope="module")
def bundle() -> DataBundle:
    images, labels = RANDOM.randint(1, 256, (101, 16, 16, 3), dtype=np.uint8), np.arange(101) % 4
    return load_data({"train": (images, labels), "val": (images[:9], labels[:9]), "test": (images[:9], labels[:9])})


def as_batch(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def as_arrays(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def without_pixels(split: Split) -> Split:
    """The same images, streamed."""
    return Split(split.images, split.labels, split.image_size)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("saturation", TF.adjust_saturation),
        ("brightness", TF.adjust_brightness),
        ("contrast", TF.adjust_contrast),
        ("sharpness", TF.adjust_sharpness),
        ("autocontrast", lambda image, factor: TF.autocontrast(image)),
        ("equalize", lambda image, factor: TF.equalize(image)),
    ],
)
def test_colour_operations_are_pils_to_the_last_bit(pictures: np.ndarray, name: str, reference) -> None:
    factors = RANDOM.uniform(0.1, 1.9, len(pictures)).astype(np.float32)
    for size in (32, 2):  # sharpness leaves borders alone, and two pixels are all border
        here = np.ascontiguousarray(pictures[:, :size, :size])
        found = as_arrays(idbh.COLOURS[name](as_batch(here), torch.from_numpy(factors)))
        expected = [np.asarray(reference(Image.fromarray(p), float(f))) for p, f in zip(here, factors, strict=True)]
        assert np.array_equal(found, np.stack(expected)) and (size == 2 or not np.array_equal(found, here))


def reference_pipeline(picture: np.ndarray, draws: np.ndarray, variant: idbh.Variant) -> np.ndarray:
    """One image through PIL and torchvision, from the same uniform numbers; nothing of it is the package's."""
    size, draw = len(picture), iter(draws.tolist())
    image = Image.fromarray(picture)
    if next(draw) < 0.5:
        image = TF.hflip(image)
    strength = int(next(draw) * max(1, round(variant.shift * size / 32)))
    across = int(next(draw) * (strength + 1))
    down = strength - across
    top, left = int(next(draw) * (down + 1)), int(next(draw) * (across + 1))
    image = TF.pad(TF.crop(image, top, left, size - down, size - across), [across, down])
    top, left = int(next(draw) * (down + 1)), int(next(draw) * (across + 1))
    image = TF.crop(image, down - top, across - left, size, size)

    roll, amount, sign, axis = (next(draw) for _ in range(4))
    for operation in variant.operations:
        if roll < operation.probability:
            break
        roll -= operation.probability
    value = operation.low + (operation.high - operation.low) * amount
    signed = -value if sign < 0.5 else value
    factor = float(np.float32(value))
    if operation.name == "shear":
        angle = math.degrees(signed)
        image = TF.affine(image, 0.0, [0, 0], 1.0, [angle, 0.0] if axis < 0.5 else [0.0, angle], fill=0)
    elif operation.name == "rotation":
        image = TF.rotate(image, int(signed), fill=0)
    elif operation.name in ("autocontrast", "equalize"):
        image = getattr(TF, operation.name)(image)
    else:
        image = getattr(TF, f"adjust_{operation.name}")(image, factor)

    out, erased, rest = np.array(image), next(draw) < variant.erase, list(draw)
    for i in range(10) if erased else ():
        area = size * size * (variant.area[0] + (variant.area[1] - variant.area[0]) * rest[i])
        ratio = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * rest[10 + i])
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < size and width < size:
            top, left = int(rest[20] * (size - height + 1)), int(rest[21] * (size - width + 1))
            out[top : top + height, left : left + width] = 0
            break
    return out


@pytest.mark.parametrize("name", ["idbh-weak", "idbh-strong", "idbh-svhn"])
def test_idbh_equals_an_image_by_image_pipeline_of_pil(pictures: np.ndarray, name: str) -> None:
    variant, images = idbh.VARIANTS[name], np.tile(pictures, (4, 1, 1, 1))
    for size in (32, 15):
        here = np.ascontiguousarray(images[:, :size, :size])
        draws = RANDOM.random_sample((idbh.DRAWS, len(here)))
        plan = idbh.make_plan(variant, size, draws)
        assert sum(plan.counts) == len(here) and min(plan.counts) > 0
        found = as_arrays(idbh.apply(plan, variant, as_batch(here)))
        expected = np.stack([reference_pipeline(one, draws[:, i], variant) for i, one in enumerate(here)])
        assert np.array_equal(found, expected)
    assert np.array_equal(images[: len(pictures)], pictures), "the given images stay as they were"


def test_idbh_keeps_its_ranges() -> None:
    n = 20_000
    for name, erase, shift in (("idbh-weak", 0.5, 10), ("idbh-strong", 1.0, 10), ("idbh-svhn", 1.0, 8)):
        variant = idbh.VARIANTS[name]
        assert sum(operation.probability for operation in variant.operations) == pytest.approx(1)
        plan = idbh.make_plan(variant, 32, uniforms(0, BATCHED, np.zeros(n, np.int64), np.arange(n), idbh.DRAWS))
        shares = [operation.probability for operation in variant.operations]
        assert np.allclose(np.array(plan.counts) / n, shares, atol=0.012)
        assert plan.flip.mean() == pytest.approx(0.5, abs=0.02)
        top, left, bottom, right = plan.geometry[6:]
        lost = 31 - bottom + top + 31 - right + left
        assert lost.min() == 0 and lost.max() == shift and (np.bincount(lost) > n / (shift + 3)).all()
        area = (plan.erase[2] - plan.erase[0]) * (plan.erase[3] - plan.erase[1])
        assert (area > 0).mean() == pytest.approx(erase, abs=0.02)
        assert area.max() / 1024 < variant.area[1] + 0.03 and plan.erase.min() == 0 and plan.erase.max() == 32
    assert idbh.VARIANTS["idbh"] is idbh.VARIANTS["idbh-weak"]
    assert set(idbh.VARIANTS) < set(AUGMENTATIONS), "what the recipe may choose is what there is"


def test_cutout_is_a_square_around_any_pixel_cut_off_at_the_border() -> None:
    n = 20_000
    draws = uniforms(3, BATCHED, np.zeros(n, np.int64), np.arange(n), 2)
    boxes = cutout_boxes(draws, 14, 32)
    top, left, bottom, right = boxes
    assert set(top + 7) == set(range(32)) == set(left + 7) and (bottom - top == 14).all() and (right - left == 14).all()
    images = torch.full((n, 3, 32, 32), 200, dtype=torch.uint8)
    found = blank(images, torch.from_numpy(boxes))
    for i in range(50):
        expected = np.full((32, 32), 200)
        expected[max(0, top[i]) : bottom[i], max(0, left[i]) : right[i]] = 0
        assert (found[i].numpy() == expected).all()
    share = (found[:, 0] == 0).float().mean().item()
    inside = sum(min(32, c + 7) - max(0, c - 7) for c in range(32)) / 32
    assert share == pytest.approx((inside / 32) ** 2, rel=0.02)


@pytest.mark.parametrize("streamed", [False, True])
def test_cutout_batches_are_those_of_crop_flip_with_a_square(bundle: DataBundle, streamed: bool) -> None:
    split = without_pixels(bundle.train) if streamed else bundle.train
    loaders = [make_train_loader(split, batch_size=32, augment=a, seed=3, workers=0) for a in ("cutout", "crop-flip")]
    assert loaders[0].frame_size == loaders[1].frame_size == 20, "perturbations can follow: the square moves no pixel"
    for cut, plain in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        assert torch.equal(cut.index, plain.index)
        assert all(torch.equal(getattr(cut.view, f.name), getattr(plain.view, f.name)) for f in fields(cut.view))
        kept = cut.images == plain.images
        assert (cut.images[~kept] == 0).all()
        for image in ~kept.all(dim=1):
            rows, cols = image.any(1).nonzero(), image.any(0).nonzero()
            assert len(rows) and rows.max() - rows.min() < 7 and cols.max() - cols.min() < 7  # 14 of 32 are 7 of 16
    none = make_train_loader(bundle.train, batch_size=32, augment="cutout", cutout_size=0, seed=3)
    assert same_batches(list(none.epoch(1)), list(make_train_loader(bundle.train, batch_size=32, seed=3).epoch(1)))


@pytest.mark.parametrize("augment", ["idbh-weak", "idbh-svhn"])
def test_idbh_batches_equal_the_operations_on_stored_images(bundle: DataBundle, augment: str) -> None:
    stored, variant = bundle.train.pixels.permute(0, 3, 1, 2), idbh.VARIANTS[augment]
    for split in (bundle.train, without_pixels(bundle.train)):
        loader = make_train_loader(split, batch_size=32, augment=augment, seed=3, workers=0)
        assert loader.frame_size is None and loader.pad == 0
        for batch in loader.epoch(2):
            index = batch.index.numpy()
            plan = idbh.make_plan(variant, 16, uniforms(3, BATCHED, np.full_like(index, 2), index, idbh.DRAWS))
            assert torch.equal(batch.images, idbh.apply(plan, variant, stored[index]).float() / 255)
            assert batch.view.flip.tolist() == plan.flip.tolist()
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.targets.tolist() == split.labels[index].tolist()


@pytest.mark.parametrize("augment", NEW)
def test_resume_workers_shards_and_loaders_change_nothing(bundle: DataBundle, augment: str) -> None:
    def loader(split: Split = bundle.train, batch_size: int = 20, seed: int = 5, **settings):
        return make_train_loader(split, batch_size=batch_size, augment=augment, seed=seed, **settings)

    first, second = list(loader().epoch(0)), list(loader().epoch(1))
    assert same_batches(first, list(loader().epoch(0))) and not same_batches(first, second)
    assert not same_batches(first, list(loader(seed=6).epoch(0)))
    alone = loader(without_pixels(bundle.train), workers=0)
    helped = loader(without_pixels(bundle.train), workers=2)
    assert same_batches(list(alone.epoch(0)), list(helped.epoch(0))) and same_batches(
        list(alone.epoch(1)), list(helped.epoch(1))
    )
    if augment != "cutout":  # its crop comes from the workers, which draw for each image alone
        assert same_batches(first, list(alone.epoch(0)))
    ranks = [list(loader(batch_size=10, shard=(rank, 2)).epoch(0)) for rank in (0, 1)]
    for whole, *parts in zip(first, *ranks, strict=True):
        if len(whole) == 20:
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    whole, small = ({int(i): image for b in batches for i, image in zip(b.index, b.images, strict=True)}
                    for batches in (first, loader(batch_size=7).epoch(0)))  # fmt: skip
    assert all(torch.equal(whole[i], small[i]) for i in whole.keys() & small.keys()), "whatever the batch size"


def test_global_random_streams_are_left_alone(bundle: DataBundle) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for augment in NEW:
        list(make_train_loader(bundle.train, batch_size=40, augment=augment).epoch(0))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_uniforms_are_uniform_and_belong_to_the_sample() -> None:
    index, turn = np.arange(5000), np.zeros(5000, np.int64)
    draws = uniforms(0, BATCHED, turn, index, 4)
    assert draws.shape == (4, 5000) and draws.min() >= 0 and draws.max() < 1
    for row in draws:
        assert np.histogram(row, 10, (0, 1))[0] == pytest.approx(500, rel=0.2)
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.05
    assert np.abs(np.corrcoef(draws[:, :-1], draws[:, 1:]) - np.eye(8)).max() < 0.05
    order = np.random.RandomState(1).permutation(5000)
    assert np.array_equal(uniforms(0, BATCHED, turn, order, 2), draws[:2, order])
    others = [
        uniforms(*key, 4) for key in ((1, BATCHED, turn, index), (0, 9, turn, index), (0, BATCHED, turn + 1, index))
    ]
    assert all(abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.03 for other in others)
    assert set(below(draws[0], 11)) == set(range(11))


def test_large_images_stream_through_idbh(make_folder) -> None:
    split = load_data(make_folder({"train": 6, "test": 2}, size=96)).train
    batch = next(make_train_loader(split, batch_size=12, augment="idbh-strong", workers=2).epoch(0))
    assert batch.images.shape == (12, 3, 96, 96) and batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.images == 0).flatten(1).any(1).all(), "each image has its erased box"


def test_unknown_augmentations_name_the_nearest(bundle: DataBundle) -> None:
    with pytest.raises(UserError, match="unknown augmentation 'idbh-week': did you mean idbh-weak"):
        make_train_loader(bundle.train, batch_size=8, augment="idbh-week")


@pytest.mark.parametrize("augment", ["cutout", "idbh-weak"])
def test_two_epochs_of_training(train_small, augment: str) -> None:
    result = train_small(recipe_args={"augment": augment, "check_attack": "pgd-2-1"})
    assert len(result.history) == 2 and all(math.isfinite(row["train_loss"]) for row in result.history)


def test_methods_that_carry_perturbations_refuse_idbh_and_take_cutout(train_small) -> None:
    with pytest.raises(UserError, match="augmentation 'idbh-weak' does not allow: pass --set augment=crop-flip"):
        train_small("atas", recipe_args={"augment": "idbh-weak", "check_attack": "pgd-2-1"})
    train_small("atas", "other", epochs=1, recipe_args={"augment": "cutout", "check_attack": "pgd-2-1"})


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bytes(bundle: DataBundle) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for augment in NEW:
        one = make_train_loader(bundle.train, batch_size=32, augment=augment)
        other = make_train_loader(bundle.train, batch_size=32, augment=augment, device="cuda")
        for a, b in zip(one.epoch(0), other.epoch(0), strict=True):
            assert b.images.is_cuda and torch.equal(a.images, b.images.cpu())
