"""Batches: geometry, order, shards, and that streaming gives what its views say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import same_batches
from timm_robust.data import DataBundle, as_tensors, load_data, make_eval_loader, make_train_loader, sample
from timm_robust.data.augment import inception_box, scaled_pad, stream
from timm_robust.data.images import fit


@pytest.fixture(scope="module")
def bundle() -> DataBundle:
    random = np.random.RandomState(0)
    images, labels = random.randint(0, 256, (101, 16, 16, 3), dtype=np.uint8), np.arange(101) % 4
    return load_data({"train": (images, labels), "val": (images[:9], labels[:9]), "test": (images[:9], labels[:9])})


def reference(image: np.ndarray, view, i: int, pad: int, mode: str) -> torch.Tensor:
    """One image cropped and mirrored with NumPy slices, from the view alone."""
    border = ((pad, pad), (pad, pad), (0, 0))
    framed = np.pad(image, border, mode="reflect") if mode == "reflect" else np.pad(image, border)
    top, left, height, width = (int(getattr(view, name)[i]) for name in ("top", "left", "height", "width"))
    crop = framed[top : top + height, left : left + width]
    crop = crop[:, ::-1] if view.flip[i] else crop
    return torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("augment", ["crop-flip", "crop", "flip", "none"])
@pytest.mark.parametrize("streamed", [False, True])
def test_batches_equal_a_per_image_reference(bundle: DataBundle, augment: str, mode: str, streamed: bool) -> None:
    split = bundle.train
    stored = split.pixels.numpy()
    if streamed:
        split = type(split)(split.images, split.labels, split.image_size)
    loader = make_train_loader(split, batch_size=32, augment=augment, pad=4, pad_mode=mode, seed=3, workers=0)
    assert loader.pad == (2 if "crop" in augment else 0)  # 4 pixels of 32 are 2 of 16
    assert loader.frame_size == 16 + 2 * loader.pad
    batches = list(loader.epoch(1))
    assert len(batches) == len(loader) == 4
    for batch in batches:
        assert batch.images.dtype == torch.float32 and batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.targets.tolist() == split.labels[batch.index.numpy()].tolist()
        for i in range(len(batch)):
            expected = reference(stored[batch.index[i]], batch.view, i, loader.pad, mode)
            assert torch.equal(batch.images[i], expected)
    views = [batch.view for batch in batches]
    tops = {int(top) for view in views for top in view.top}
    flips = {bool(flip) for view in views for flip in view.flip}
    assert tops == (set(range(5)) if "crop" in augment else {0})
    assert flips == ({False, True} if "flip" in augment else {False})


def test_each_index_comes_once_per_epoch_and_epochs_differ(bundle: DataBundle) -> None:
    loader = make_train_loader(bundle.train, batch_size=10)  # 101 images: the last batch of one is left out
    first, again, second = list(loader.epoch(0)), list(loader.epoch(0)), list(loader.epoch(1))
    seen = torch.cat([batch.index for batch in first])
    assert len(loader) == 10 and len(seen.unique()) == len(seen) == 100
    assert same_batches(first, again)
    assert not same_batches(first, second)
    assert same_batches(second, list(make_train_loader(bundle.train, batch_size=10).epoch(1))), (
        "a resumed run draws the same"
    )
    assert not same_batches(first, list(make_train_loader(bundle.train, batch_size=10, seed=1).epoch(0)))


def test_view_of_an_image_does_not_depend_on_the_batch_size(bundle: DataBundle) -> None:
    def tops(batch_size: int) -> dict[int, int]:
        epoch = make_train_loader(bundle.train, batch_size=batch_size).epoch(2)
        return {int(i): int(top) for batch in epoch for i, top in zip(batch.index, batch.view.top, strict=True)}

    few, many = tops(10), tops(50)
    assert all(few[i] == many[i] for i in few.keys() & many.keys())


def test_global_random_stream_is_left_alone(bundle: DataBundle, make_folder) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    streamed = load_data(make_folder({"train": 4, "test": 2}, size=70)).train
    for split, augment in ((bundle.train, "crop-flip"), (streamed, "inception")):
        list(make_train_loader(split, batch_size=4, augment=augment, workers=0).epoch(0))
    list(make_eval_loader(streamed, batch_size=4, workers=2))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize(("batch_size", "world"), [(8, 2), (8, 3), (25, 4), (50, 2), (33, 3)])
def test_shards_partition_each_epoch(bundle: DataBundle, batch_size: int, world: int) -> None:
    ranks = [
        list(make_train_loader(bundle.train, batch_size=batch_size, shard=(r, world)).epoch(0)) for r in range(world)
    ]
    for together in zip(*ranks, strict=True):
        assert len({len(batch) for batch in together}) == 1
        assert len(together[0]) >= 2
    seen = torch.cat([batch.index for rank in ranks for batch in rank])
    doubled = len(seen) - len(seen.unique())
    assert doubled < world
    assert len(seen.unique()) >= 101 - world, "at most a global batch of single images is left out"
    alone = list(make_train_loader(bundle.train, batch_size=batch_size * world).epoch(0))
    for number, together in enumerate(zip(*ranks, strict=True)):
        if len(alone[number]) == batch_size * world:
            assert torch.equal(torch.cat([batch.index for batch in together]), alone[number].index)


def test_padding_scales_with_the_size() -> None:
    assert [scaled_pad(4, size) for size in (8, 16, 32, 64, 4)] == [1, 2, 4, 8, 1]
    assert scaled_pad(0, 32) == 0


def test_evaluation_keeps_order_and_gives_contiguous_images(bundle: DataBundle) -> None:
    batches = list(make_eval_loader(bundle.test, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert all(batch.view is None and batch.images.is_contiguous() for batch in batches)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(9))
    images, labels = as_tensors(bundle.test, 5)
    assert images.shape == (5, 3, 16, 16) and images.is_contiguous() and labels.dtype == torch.int64
    assert torch.equal(images, torch.cat([batch.images for batch in batches])[:5])
    assert len(list(make_eval_loader(bundle.test, batch_size=4, n_examples=5))) == 2
    last = next(iter(make_eval_loader(bundle.test, batch_size=4, channels_last=True)))
    assert last.images.is_contiguous(memory_format=torch.channels_last)


def test_streaming_is_the_same_for_any_number_of_workers(make_folder) -> None:
    bundle = load_data(make_folder({"train": 12, "test": 5}, size=96))
    assert bundle.image_size == 96 and not bundle.train.resident and bundle.mean[0] == 0.485
    settings = {"batch_size": 5, "augment": "inception", "seed": 1}
    alone = make_train_loader(bundle.train, workers=0, **settings)
    helped = make_train_loader(bundle.train, workers=2, **settings)
    for epoch in (0, 1):
        assert same_batches(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    next(iter(helped.epoch(2)))  # an epoch broken off leaves nothing behind
    assert same_batches(list(alone.epoch(3)), list(helped.epoch(3)))
    assert same_batches(list(make_eval_loader(bundle.test, batch_size=4, workers=0)),
                list(make_eval_loader(bundle.test, batch_size=4, workers=2)))  # fmt: skip


def test_inception_view_reproduces_the_crop(make_folder) -> None:
    root = make_folder({"train": 12, "test": 2}, size=96)
    bundle = load_data(root, image_size=72)
    loader = make_train_loader(bundle.train, batch_size=8, augment="inception", workers=0)
    assert loader.frame_size is None
    for batch in loader.epoch(0):
        view = batch.view
        for i in range(len(batch)):
            top, left, height, width = (int(side[i]) for side in (view.top, view.left, view.height, view.width))
            assert top + height <= 96 and left + width <= 96
            image = Image.open(root / bundle.train.name(int(batch.index[i])))
            part = image.crop((left, top, left + width, top + height)).resize((72, 72), Image.Resampling.BILINEAR)
            pixels = np.asarray(part)[:, ::-1] if view.flip[i] else np.asarray(part)
            assert torch.equal(batch.images[i], torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)


def test_inception_boxes_keep_area_ratio_and_bounds() -> None:
    areas = []
    for key in range(500):
        top, left, height, width = inception_box(120, 80, stream(0, 0, key))
        assert 0 <= top <= 80 - height and 0 <= left <= 120 - width and height > 0 and width > 0
        assert 0.7 < width / height < 1.4
        areas.append(height * width / 9600)
    assert min(areas) < 0.15 and max(areas) > 0.7
    assert inception_box(1000, 10, stream(0, 0, 0)) == (0, 493, 10, 13), "too long: the centre"


def test_inception_of_small_images_takes_them_one_by_one(bundle: DataBundle) -> None:
    batches = list(make_train_loader(bundle.train, batch_size=50, augment="inception", workers=0).epoch(0))
    assert [tuple(batch.images.shape) for batch in batches] == [(50, 3, 16, 16)] * 2
    assert (batches[0].view.height <= 16).all()


def test_evaluation_view() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    assert np.array_equal(np.asarray(fit(image, 224)), np.asarray(expected))
    small = image.resize((85, 64), Image.Resampling.BILINEAR).crop((10, 0, 74, 64))
    assert np.array_equal(np.asarray(fit(image, 64)), np.asarray(small))
    assert fit(small, 64) is small


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_goes_on_after_unreadable_images(make_folder, workers: int) -> None:
    root: Path = make_folder({"train": 12, "test": 5}, size=96)
    (root / "test" / "bee" / "001.png").write_bytes(b"not an image")
    bundle = load_data(root)
    victim = (
        bundle.train.source_names.index("train/cow/003.png") if "train/cow/003.png" in bundle.train.source_names else 0
    )
    broken = root / bundle.train.name(victim)
    broken.write_bytes(broken.read_bytes()[:200])
    loader = make_train_loader(bundle.train, batch_size=6, augment="inception", workers=workers)
    with pytest.warns(UserWarning) as caught:
        indices = torch.cat([batch.index for epoch in (0, 1) for batch in loader.epoch(epoch)])
    assert [broken.name in str(w.message) for w in caught if "cannot be read" in str(w.message)] == [True]
    assert victim not in indices and (indices == (victim + 1) % len(bundle.train)).sum() == 4
    with pytest.warns(UserWarning, match=r"test/bee/001\.png cannot be read and is left out"):
        images, labels = as_tensors(bundle.test)
    assert len(images) == len(labels) == 14


@pytest.mark.parametrize("streamed", [False, True])
def test_sample_is_fixed_and_not_augmented(bundle: DataBundle, streamed: bool) -> None:
    """Some images from all over the split; the global generators stay where they were."""
    split, stored = bundle.train, bundle.train.pixels
    if streamed:
        split = type(split)(split.images, split.labels, split.image_size)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, again, other = (sample(split, 20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()
    assert same_batches([one], [again]) and not same_batches([one], [other])
    everything = stored.permute(0, 3, 1, 2).float() / 255
    places = [(image == everything).flatten(1).all(1).nonzero().item() for image in one.images]
    assert len(set(places)) == 20 and max(places) - min(places) > 60
    assert one.targets.tolist() == bundle.train.labels[places].tolist()
    assert one.view is None and one.images.dtype == torch.float32
    assert len(sample(split, 500)) == 101, "all there are"


@pytest.mark.gpu
def test_batches_on_a_gpu_equal_those_on_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here, there = load_data("digits"), load_data("digits", device="cuda")
    one = make_train_loader(here.train, batch_size=64)
    other = make_train_loader(there.train, batch_size=64, device="cuda")
    for a, b in zip(one.epoch(0), other.epoch(0), strict=True):
        assert b.images.is_cuda and torch.equal(a.images, b.images.cpu()) and torch.equal(a.index, b.index.cpu())
