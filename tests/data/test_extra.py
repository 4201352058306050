"""Extra images: where they come from, how they are mixed with the real ones, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.support import Killed, same_batches
from timm_robust.cli import app
from timm_robust.data import DataBundle, add_extra, load_data, make_train_loader
from timm_robust.data.mixing import endless, extra_count
from timm_robust.errors import UserError
from timm_robust.runs.checkpoint import load_state
from timm_robust.training.engine import Engine

RANDOM = np.random.RandomState(0)


REAL, MORE = 101, 400


LABELS = np.arange(MORE) % 4


def pictures(n: int, low: int, high: int, size: int = 16) -> np.ndarray:
    """Noise whose level says which set it is of."""
    return RANDOM.randint(low, high, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle() -> DataBundle:
    """101 dark real images, none of them held out."""
    images, labels = pictures(REAL, 1, 100), np.arange(REAL) % 4
    return load_data({"train": (images, labels), "val": (images[:9], labels[:9]), "test": (images[:9], labels[:9])})


@pytest.fixture(scope="module")
def mixed(bundle: DataBundle) -> DataBundle:
    """With 400 bright extra ones."""
    return add_extra(bundle, (pictures(MORE, 100, 256), LABELS), 0.7)


def loader(bundle: DataBundle, batch_size: int = 20, streamed: bool = False, **settings):
    split, extra = bundle.train, bundle.extra
    if streamed:
        split = type(split)(split.images, split.labels, split.image_size)
    return make_train_loader(split, batch_size=batch_size, extra=extra, **{"seed": 3, "workers": 0, **settings})


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("batch_size", "share", "extras"), [(20, 0.7, 14), (33, 0.5, 16), (7, 0.9, 6), (128, 0.01, 1)])
def test_each_batch_has_its_share(
    bundle: DataBundle, streamed: bool, batch_size: int, share: float, extras: int
) -> None:
    mixed = add_extra(bundle, (pictures(MORE, 100, 256), LABELS), share)
    assert mixed.num_train == REAL + MORE and bundle.num_train == REAL
    labels = np.concatenate([bundle.train.labels, LABELS])
    batches = list(loader(mixed, batch_size, streamed, pad=0).epoch(1))
    assert len(batches) == math.ceil(REAL / batch_size)
    for batch in batches:
        assert len(batch) == batch_size, "all are full"
        added = batch.index >= REAL
        assert added.sum() == extras and batch.index.max() < REAL + MORE and batch.index.min() >= 0
        assert torch.equal(added, torch.arange(batch_size) >= batch_size - extras), "real images come first"
        assert torch.equal((batch.images > 99.5 / 255).flatten(1).all(1), added)
        assert batch.targets.tolist() == labels[batch.index.numpy()].tolist()


@pytest.mark.parametrize("augment", ["crop-flip", "cutout", "idbh-weak"])
@pytest.mark.parametrize("streamed", [False, True])
def test_images_are_those_of_their_index(mixed: DataBundle, streamed: bool, augment: str) -> None:
    stored = torch.cat([mixed.train.pixels, mixed.extra.split.pixels]).permute(0, 3, 1, 2).float() / 255
    for batch in loader(mixed, streamed=streamed, augment=augment).epoch(0):
        if augment != "crop-flip":
            assert ((batch.images == 0).float().mean((1, 2, 3)) < 0.9).all()
            continue
        padded = torch.nn.functional.pad(stored[batch.index], (2, 2, 2, 2))
        for i, image in enumerate(batch.images):
            top, left = int(batch.view.top[i]), int(batch.view.left[i])
            crop = padded[i, :, top : top + 16, left : left + 16]
            assert torch.equal(image, crop.flip(2) if batch.view.flip[i] else crop)


@pytest.mark.parametrize("pad_mode", ["zeros", "reflect"])
def test_crops_fall_everywhere(mixed: DataBundle, pad_mode: str) -> None:
    views = [batch.view for epoch in range(8) for batch in loader(mixed, pad_mode=pad_mode).epoch(epoch)]
    for part in (slice(0, 6), slice(6, None)):
        assert {int(top) for view in views for top in view.top[part]} == set(range(5))
        assert torch.cat([view.flip[part] for view in views]).float().mean() == pytest.approx(0.5, abs=0.15)


def test_each_image_comes_again_only_after_all_others(mixed: DataBundle) -> None:
    order = torch.cat([batch.index for epoch in range(12) for batch in loader(mixed).epoch(epoch)]).numpy()
    for kind, n in ((order[order < REAL], REAL), (order[order >= REAL], MORE)):
        laps = [kind[start : start + n] for start in range(0, len(kind) - n + 1, n)]
        assert len(laps) >= 2 and all(len(np.unique(lap)) == n for lap in laps)
        assert not np.array_equal(laps[0], laps[1])


def test_few_extra_images_come_augmented_anew(bundle: DataBundle) -> None:
    """Fewer than an epoch needs: the same image comes several times in it, each time with another crop."""
    mixed = add_extra(bundle, (pictures(5, 100, 256), LABELS[:5]), 0.7)
    for streamed in (False, True):
        batches = list(loader(mixed, streamed=streamed).epoch(0))
        seen = torch.cat([batch.images[batch.index == REAL] for batch in batches])
        assert len(seen) >= 13 and len(seen.flatten(1).unique(dim=0)) > 6


@pytest.mark.parametrize("augment", ["crop-flip", "idbh-strong"])
def test_resume_workers_and_shards_change_nothing(mixed: DataBundle, augment: str) -> None:
    settings = {"augment": augment}
    first, later = list(loader(mixed, **settings).epoch(0)), list(loader(mixed, **settings).epoch(7))
    assert same_batches(later, list(loader(mixed, **settings).epoch(7))), "a resumed run draws the same"
    assert not same_batches(first, later) and not same_batches(first, list(loader(mixed, seed=4, **settings).epoch(0)))
    alone, helped = (loader(mixed, streamed=True, workers=workers, **settings) for workers in (0, 2))
    for epoch in (0, 1):
        assert same_batches(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    ranks = [list(loader(mixed, 10, shard=(rank, 2), **settings).epoch(0)) for rank in (0, 1)]
    assert len(ranks[0]) == len(first) == 6
    for whole, *parts in zip(first, *ranks, strict=True):
        order = torch.cat([part.index for part in parts]).argsort(), whole.index.argsort()
        assert torch.equal(torch.cat([part.images for part in parts])[order[0]], whole.images[order[1]])
        assert all((part.index >= REAL).sum() == 7 for part in parts)


def test_endless_permutations_can_be_entered_anywhere() -> None:
    index, turn = endless(7, 0, 40, seed=1, key=9)
    for start, count in ((3, 2), (5, 20), (35, 5)):
        part = endless(7, start, count, seed=1, key=9)
        assert np.array_equal(part[0], index[start : start + count])
        assert np.array_equal(part[1], turn[start : start + count])
    assert turn.tolist() == [i // 7 for i in range(40)]


def test_without_extra_images_nothing_changes(bundle: DataBundle) -> None:
    assert same_batches(
        list(loader(bundle).epoch(1)), list(make_train_loader(bundle.train, batch_size=20, seed=3).epoch(1))
    )


def write_npz(path: Path, save, **arrays) -> Path:
    save(path, **arrays)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("image", "label"), ("train_images", "train_labels"), ("images", "labels")])
def test_npz_files(bundle: DataBundle, tmp_path: Path, save, keys: tuple[str, str]) -> None:
    images = pictures(30, 0, 256)
    arrays = {keys[0]: images, keys[1]: LABELS[:30], "other": np.zeros(3)}
    path = write_npz(tmp_path / "made.npz", save, **arrays)
    split = add_extra(bundle, path, 0.5).extra.split
    assert np.array_equal(split.pixels.numpy(), images) and split.labels.tolist() == LABELS[:30].tolist()
    on_disk = split.images.pixels
    while isinstance(on_disk, np.ndarray) and not isinstance(on_disk, np.memmap):
        on_disk = on_disk.base
    assert isinstance(on_disk, np.memmap) == (save is np.savez), "what is not compressed stays on the disk"


def test_folders_datasets_and_sizes(make_folder, tmp_path: Path) -> None:
    root = make_folder({"train": 8, "test": 3}, size=16)
    bundle = load_data(root)
    for name, (folder, size) in {"flat": (".", 16), "inside": ("train", 24)}.items():
        for kind in ("bee", "cow"):  # not all classes need extra images
            (tmp_path / name / folder / kind).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(pictures(1, 0, 256, size)[0]).save(tmp_path / name / folder / kind / f"{i}.png")
        extra = add_extra(bundle, tmp_path / name, 0.5).extra
        assert extra.split.labels.tolist() == [1, 1, 1, 2, 2, 2] and extra.split.pixels.shape == (6, 16, 16, 3)
        assert extra.split.name(0).endswith("bee/0.png")

    class Made(torch.utils.data.Dataset):
        classes = ("cow", "ant")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int):
            return torch.full((3, 16, 16), i / 4), i % 2

    assert add_extra(bundle, Made(), 0.5).extra.split.labels.tolist() == [2, 0, 2, 0], "by the classes' names"
    digits = load_data("digits")
    more = add_extra(digits, "digits", 0.5).extra
    assert (more.name, len(more.split)) == ("digits", 1437)


def test_large_images_stream(make_folder, tmp_path: Path) -> None:
    root = make_folder({"train": 6, "test": 2}, size=80)
    bundle = add_extra(load_data(root), root / "train", 0.5)
    assert not bundle.train.resident and bundle.extra.split.pixels is None
    for augment in ("inception", "idbh-weak"):
        for batch in make_train_loader(
            bundle.train, batch_size=4, augment=augment, extra=bundle.extra, workers=2
        ).epoch(0):
            assert batch.images.shape == (4, 3, 80, 80) and (batch.index >= len(bundle.train)).sum() == 2


def test_unreadable_extra_images_are_left_out(make_folder, tmp_path: Path) -> None:
    bundle = load_data(make_folder({"train": 8, "test": 3}, size=16))
    (tmp_path / "made" / "ant").mkdir(parents=True)
    (tmp_path / "made" / "ant" / "0.png").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="has no readable image among 1"):
        add_extra(bundle, tmp_path / "made", 0.5)
    Image.fromarray(pictures(1, 0, 256)[0]).save(tmp_path / "made" / "ant" / "1.png")
    with pytest.warns(UserWarning, match=r"0\.png cannot be read and is left out"):
        extra = add_extra(bundle, tmp_path / "made", 0.5).extra
    assert len(extra.split) == 1 and extra.split.name(0).endswith("1.png")


def test_mistakes_are_told_in_one_sentence(bundle: DataBundle, make_folder, tmp_path: Path) -> None:
    good = (pictures(8, 0, 256), LABELS[:8])

    def sentence(data, share=0.5, real: DataBundle = bundle) -> str:
        with pytest.raises(UserError) as caught:
            add_extra(real, data, share)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for share in (0, 1, -0.1, 1.5, "much", True, math.nan):
        assert f"extra_share is {share!r}: expected a number between 0 and 1, such as 0.7" in sentence(good, share)
    assert "extra data 'arrays' has class number 9, but there are 4 classes: expected 0 to 3" in sentence(
        (good[0], LABELS[:8] + 6)
    )
    assert "extra has 8 images and 7 labels" in sentence((good[0], LABELS[:7]))
    assert "they look like 0..255: divide by 255" in sentence((torch.rand(8, 3, 16, 16) * 255, LABELS[:8]))
    assert "is empty: expected at least one image" in sentence((good[0][:0], LABELS[:0]))
    assert "the extra split is a int: expected a map-style data set" in sentence(3)
    assert "extra data 'digit' is neither an existing path nor a known data set: did you mean digits?" in sentence(
        "digit"
    )
    (tmp_path / "notes.txt").write_text("")
    assert "is a file of another kind: expected a folder of classes, or a .npz" in sentence(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert "has no class folders: expected CLASS/* or train/CLASS/* in it" in sentence(tmp_path / "empty")
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 and no more")
    assert "cannot be read as .npz, it may be truncated" in sentence(tmp_path / "half.npz")
    path = write_npz(tmp_path / "made.npz", np.savez, picture=good[0], label=good[1])
    assert "holds picture, label: expected train_images and train_labels, or image and label" in sentence(path)
    root = make_folder({"train": 8, "test": 3}, size=16)
    (tmp_path / "made" / "be").mkdir(parents=True)
    Image.fromarray(good[0][0]).save(tmp_path / "made" / "be" / "0.png")
    assert "has 'bee' where extra data" in sentence(tmp_path / "made", real=load_data(root))
    assert "has 3 classes and extra data 'digits' 10, and without names on both sides" in sentence(
        "digits", real=load_data(root)
    )


def test_batches_too_small_for_the_share(mixed: DataBundle) -> None:
    assert extra_count(128, 0.7) == 90
    for batch_size, expected in (
        (1, "makes 1 of 1 images in a batch extra ones: expected some of each kind, a batch size of at least 2"),
        (2, "extra_share 0.9 makes 2 of 2 images in a batch extra ones: expected some of each kind, a share from 0.5"),
    ):
        with pytest.raises(UserError) as caught:
            make_train_loader(mixed.train, batch_size=batch_size, extra=replace(mixed.extra, share=0.9))
        assert expected in str(caught.value)


def test_a_run_with_extra_images_resumes_to_the_same_bits(
    train_small, few_digits, tmp_path: Path, capsys, monkeypatch
) -> None:
    (images, labels), _ = few_digits
    bright = ((images.permute(0, 2, 3, 1) * 200).round().byte() + 55).numpy()
    path = write_npz(tmp_path / "made.npz", np.savez, image=bright, label=labels.numpy())
    settings = {"extra_data": path, "extra_share": 0.6}
    whole = train_small("fgsm-mep", "whole", quiet=False, **settings)
    said = " ".join(" ".join(capsys.readouterr()).split())
    assert "270 training + 300 extra images (60 % of each batch), 30 validation, 100 test images" in said
    manifest = json.loads((whole.output / "manifest.json").read_text())
    assert manifest["extra"] == {"name": str(path), "images": 300, "share": 0.6}

    original = Engine._train_epoch

    def killed_in_second(self):
        if self.epoch == 1:
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed_in_second)
    with pytest.raises(Killed):
        train_small("fgsm-mep", "killed", **settings)
    monkeypatch.setattr(Engine, "_train_epoch", original)
    with pytest.raises(UserError, match=r"was started with extra_share=0\.6, not 0\.5"):
        train_small("fgsm-mep", "killed", resume=True, **{**settings, "extra_share": 0.5})
    resumed = train_small("fgsm-mep", "killed", resume=True, **settings)
    one, other = (load_file(run.output / "last/model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    priors = load_state(whole.output / "last")["defense"]["priors"]["values"]
    assert len(priors) == 270 + 300, "tables have a row for each image, real or extra"
    assert priors[:270].flatten(1).any(1).any() and priors[270:].flatten(1).any(1).any()


def test_the_command_line_takes_extra_images(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "made.npz", np.savez, image=pictures(40, 0, 256, 8), label=np.arange(40) % 10)
    small = "--model-kwargs layers=[1,1,1,1] channels=[8,8,16,16] --method fgsm-rs --epochs 1 --test-attack none"
    arguments = f"train --extra-data {path} --extra-share 0.25 {small} --output {tmp_path / 'run'}"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0 and "+ 40 extra images (25 % of each batch)" in " ".join(done.output.split())


@pytest.mark.parametrize("part", ["", "/train"])
def test_the_data_itself_is_no_extra_data(train_small, part, tmp_path):
    with pytest.raises(UserError, match="extra_data is the data itself"):
        train_small(data=str(tmp_path / "photos"), extra_data=f"{tmp_path}/photos{part}")
