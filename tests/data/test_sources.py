"""What `load_data` makes of each kind of source, and how it splits."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from timm_robust.data import as_tensors, load_data
from timm_robust.data.split import hold_out

RANDOM = np.random.RandomState(0)


IMAGES = RANDOM.randint(0, 256, (60, 10, 10, 3), dtype=np.uint8)


LABELS = np.tile(np.arange(3), 20)


class PilSet(Dataset):
    """(PIL image, int) pairs, as torchvision's sets give them."""

    classes = ("red", "green", "blue")

    def __init__(self, n: int = 60, shift: int = 0) -> None:
        self.n, self.shift = n, shift

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(IMAGES[(i + self.shift) % 60]), int(LABELS[(i + self.shift) % 60])


def test_digits_are_all_there_and_keep_their_values() -> None:
    bundle = load_data("digits")
    assert (bundle.name, bundle.image_size, bundle.num_classes, bundle.in_chans) == ("digits", 8, 10, 3)
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (1294, 143, 360)
    assert bundle.train.resident and bundle.train.pixels is not None and bundle.train.pixels.dtype == torch.uint8
    from sklearn.datasets import load_digits

    scans = load_digits()
    images, labels = as_tensors(bundle.test)
    for i in (0, 7, 359):
        source = scans.images[int(bundle.test.name(i)[len("digits[") : -1])]
        assert torch.equal(images[i, 0], torch.tensor(np.rint(source / 16 * 255) / 255, dtype=torch.float32))
        assert torch.equal(images[i, 0], images[i, 2])
    assert bundle.mean[0] == pytest.approx(scans.images.mean() / 16, abs=0.01)
    assert bundle.std[0] == pytest.approx(scans.images.std() / 16, abs=0.01)
    assert (np.bincount(labels) >= 34).all()


def test_seed_moves_validation_but_never_the_test_split() -> None:
    one, same, other = load_data("digits", seed=1), load_data("digits", seed=1), load_data("digits", seed=2)
    assert one.val.source_names == same.val.source_names
    assert set(one.val.source_names) != set(other.val.source_names)
    assert one.test.source_names == other.test.source_names
    assert one.mean == other.mean
    everything = one.train.source_names + one.val.source_names + one.test.source_names
    assert len(set(everything)) == len(everything) == 1797
    assert one.val_indices is not None and len(one.val_indices) == len(one.val)


def test_hold_out_is_stratified_and_gives_each_class_its_image() -> None:
    labels = np.repeat([0, 1, 2, 3], [1000, 100, 3, 1])
    kept, held = hold_out(labels, 110, seed=0)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held], minlength=4).tolist() == [99, 10, 1, 0]  # a class of one image stays whole
    assert not (np.diff(labels[held]) >= 0).all(), "a held-out split grouped by class would make its head unfair"


def test_val_examples_sets_the_size() -> None:
    assert len(load_data("digits", val_examples=300).val) == 300


def test_folder_with_test_only_holds_validation_out(make_folder) -> None:
    bundle = load_data(make_folder({"train": 20, "test": 5}))
    assert bundle.class_names == ("ant", "bee", "cow")
    assert (len(bundle.train), len(bundle.val), len(bundle.test), bundle.image_size) == (54, 6, 15, 12)
    assert np.bincount(bundle.val.labels).tolist() == [2, 2, 2]
    assert all(name.startswith("train/") for name in bundle.val.source_names)
    images, labels = as_tensors(bundle.test)
    assert images.mean(dim=(2, 3)).argmax(dim=1).equal(labels)


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_folder_with_val_only_takes_it_as_the_test_split(make_folder, name: str) -> None:
    bundle = load_data(make_folder({"train": 20, name: 5}))
    assert all(source.startswith(f"{name}/") for source in bundle.test.source_names)
    assert all(source.startswith("train/") for source in bundle.val.source_names)


def test_folder_with_both_selects_on_val_and_judges_on_test(make_folder) -> None:
    bundle = load_data(make_folder({"train": 20, "val": 4, "test": 5}))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (60, 12, 15)
    assert bundle.val_indices is None
    assert all(source.startswith("val/") for source in bundle.val.source_names)


def test_folder_order_mixes_classes_and_traces_to_files(make_folder) -> None:
    root = make_folder({"train": 10, "test": 10})
    bundle = load_data(root, seed=0)
    assert len(set(bundle.test.labels[:8])) > 1
    assert bundle.test.source_names == load_data(root, seed=5).test.source_names
    images, _ = as_tensors(bundle.test)
    for i in (0, 11):
        stored = np.asarray(Image.open(root / bundle.test.name(i)))
        assert np.array_equal((images[i].permute(1, 2, 0) * 255).round().numpy(), stored)


def test_images_of_other_sizes_are_scaled(make_folder) -> None:
    root = make_folder({"train": 10, "test": 4})
    assert load_data(root, image_size=8).test.pixels.shape == (12, 8, 8, 3)
    Image.new("RGB", (30, 17), (255, 0, 0)).save(root / "train" / "ant" / "000.png")
    bundle = load_data(root, image_size=8)
    position = (bundle.train.source_names + bundle.val.source_names).index("train/ant/000.png")
    pixels = torch.cat([bundle.train.pixels, bundle.val.pixels])[position]
    assert (pixels == torch.tensor([255, 0, 0], dtype=torch.uint8)).all()
    assert load_data(root).image_size == 224, "sizes that differ fall back to 224"
    assert not load_data(root).train.resident


def test_sixteen_bit_grey_keeps_its_upper_byte(make_folder) -> None:
    root = make_folder({"train": 4, "test": 4})
    ramp = (np.arange(144, dtype=np.uint16) * 400).reshape(12, 12)
    Image.fromarray(ramp).save(root / "test" / "ant" / "000.png")
    bundle = load_data(root)
    pixels = bundle.test.pixels[bundle.test.source_names.index("test/ant/000.png")]
    assert np.array_equal(pixels[..., 1].numpy(), ramp >> 8)


def test_limit_and_size_decide_what_is_resident(make_folder) -> None:
    root = make_folder({"train": 10, "test": 4})
    assert load_data(root).train.resident
    assert not load_data(root, resident_limit_bytes=1000).train.resident
    assert not load_data(root, image_size=65).train.resident


def test_progress_counts_each_split(make_folder) -> None:
    calls: list[tuple[int, int]] = []
    load_data(make_folder({"train": 100, "test": 4}), progress=lambda name, done, total: calls.append((done, total)))
    assert calls == [(256, 300), (300, 300), (12, 12)]


@pytest.mark.parametrize("kind", ["grey", "rgb", "float"])
def test_npz(tmp_path: Path, kind: str) -> None:
    images = {"grey": IMAGES[..., 0], "rgb": IMAGES, "float": (IMAGES / 255).astype(np.float32)}[kind]
    columns = {"labels": LABELS[:, None].astype(np.uint8)}
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=columns["labels"], test_images=images[::-1],
             test_labels=LABELS[::-1], extra=np.zeros(3))  # fmt: skip
    bundle = load_data(str(tmp_path / "set.npz"))
    assert (len(bundle.train), len(bundle.val), len(bundle.test), bundle.num_classes) == (54, 6, 60, 3)
    expected = np.repeat(IMAGES[::-1, ..., :1], 3, axis=-1) if kind == "grey" else IMAGES[::-1]
    assert np.array_equal(bundle.test.pixels.numpy(), expected), "labels not grouped by class: the order is kept"
    assert np.array_equal(bundle.test.labels, LABELS[::-1])


def test_npz_with_val(tmp_path: Path) -> None:
    parts = {f"{split}_{part}": values for split in ("train", "val", "test")
             for part, values in (("images", IMAGES), ("labels", LABELS))}  # fmt: skip
    np.savez_compressed(tmp_path / "set.npz", **parts)
    bundle = load_data(tmp_path / "set.npz")
    assert (len(bundle.train), len(bundle.val), bundle.val_indices) == (60, 60, None)


@pytest.mark.parametrize("floats", [False, True])
def test_tensors(floats: bool) -> None:
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    images = images / 255 if floats else images
    bundle = load_data(((images, torch.from_numpy(LABELS)), (images, torch.from_numpy(LABELS))))
    assert bundle.name == "arrays"
    assert bundle.mean == pytest.approx(IMAGES.mean((0, 1, 2)) / 255)
    assert bundle.std == pytest.approx(IMAGES.std((0, 1, 2)) / 255)
    assert np.array_equal(bundle.test.pixels.numpy(), IMAGES)


def test_dict_of_splits() -> None:
    part = (torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    bundle = load_data({"train": part, "val": part, "test": part})
    assert (len(bundle.train), len(bundle.val), bundle.val_indices) == (60, 60, None)
    assert len(load_data({"train": part, "test": part, "val": None}).val) == 6


@pytest.mark.parametrize("kind", ["pil", "tensors", "subset"])
def test_datasets(kind: str) -> None:
    tensors = TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255, torch.from_numpy(LABELS))
    data = {"pil": PilSet(), "tensors": tensors, "subset": Subset(PilSet(), range(60))}[kind]
    bundle = load_data((data, data))
    assert np.array_equal(bundle.test.pixels.numpy(), IMAGES) and np.array_equal(bundle.test.labels, LABELS)
    assert bundle.class_names == (("red", "green", "blue") if kind == "pil" else ("0", "1", "2"))
    assert bundle.test.name(3) == "test[3]"


def test_targets_attribute_is_used_only_where_it_agrees_with_the_items() -> None:
    data = PilSet()
    data.targets = [2] * 60  # what a target transform would leave behind
    assert np.array_equal(load_data((data, PilSet())).test.labels, LABELS)
    assert set(load_data((data, data)).test.labels) == {0, 1, 2}


def test_timm_names_read_splits_labels_and_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name, root, split, download):
        asked.append((name, split, download))
        if split == "validation":
            raise ValueError('Unknown split "validation". Should be one of [...]')
        return PilSet(shift=1 if split == "test" else 0)

    monkeypatch.setattr("timm.data.create_dataset", create)
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    bundle = load_data("hfds/some/set")
    assert asked == [("hfds/some/set", split, False) for split in ("train", "validation", "test")]
    assert bundle.class_names == ("red", "green", "blue") and bundle.test.labels[0] == 1
    asked.clear()
    load_data("torch/cifar10", download=False)
    assert [split for _, split, _ in asked] == ["train", "test"]


def test_timm_shards_are_read_once_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shards(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (PilSet()[i] for i in range(60))

    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **named: Shards())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    bundle = load_data("wds/set", data_dir="shards")
    assert np.array_equal(bundle.test.pixels.numpy(), IMAGES) and len(bundle.val) == 60


def test_hidden_test_labels_leave_validation_as_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hidden(PilSet):
        def __getitem__(self, i):
            return super().__getitem__(i)[0], -1

    monkeypatch.setattr(
        "timm.data.create_dataset", lambda *args, split, **named: Hidden() if split == "test" else PilSet()
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    bundle = load_data("hfds/set")
    assert np.array_equal(bundle.test.labels, LABELS) and len(bundle.val) == 6


def test_real_cifar10(cifar10: Path) -> None:
    bundle = load_data(cifar10)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert bundle.class_names == names
    assert (bundle.image_size, len(bundle.test), len(bundle.val)) == (32, 10_000, 1000)
    assert bundle.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.004)
    assert bundle.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.004)
    assert np.bincount(bundle.val.labels).min() >= 95 and np.bincount(bundle.test.labels).tolist() == [1000] * 10
    assert len(set(bundle.test.labels[:30])) > 5
    image = np.asarray(Image.open(cifar10 / bundle.test.name(5)).convert("RGB"))
    assert np.array_equal(bundle.test.pixels[5].numpy(), image)
