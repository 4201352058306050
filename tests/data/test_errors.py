"""Each mistake gives one sentence that names what, which value, and what was expected."""

from __future__ import annotations

import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timm_robust.data import as_tensors, load_data, make_eval_loader, make_train_loader
from timm_robust.errors import UserError

IMAGES = torch.rand(12, 3, 8, 8)


LABELS = torch.arange(12) % 3


GOOD = (IMAGES, LABELS)


def sentence(data, **settings) -> str:
    with pytest.raises(UserError) as caught:
        load_data(data, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sentence("digit") == "data 'digit' is neither an existing path nor a known data set: did you mean digits?"
    assert sentence("cifar10").endswith("did you mean torch/cifar10?")
    assert "expected digits, an image folder, a .npz file or a timm data set" in sentence("qqqqqqqq")
    (tmp_path / "flowers").mkdir()
    assert sentence(str(tmp_path / "flower")).endswith(f"did you mean {tmp_path / 'flowers'}?")
    (tmp_path / "notes.txt").write_text("")
    assert "is a file of another kind: expected a folder with train/ and test/, or a .npz" in sentence(
        tmp_path / "notes.txt"
    )
    assert sentence("torch/cifar11").startswith("unknown data set 'torch/cifar11': did you mean torch/cifar10")
    assert "data is a int: expected a name or path" in sentence(3)


def test_folders(make_folder) -> None:
    root: Path = make_folder({"train": 4, "test": 2})
    assert f"did you mean {root}?" in sentence(root / "train")
    shutil.move(root / "train", root / "tmp")
    assert sentence(root).endswith("has no train/ inside: expected train/CLASS/* in it")
    (root / "train").mkdir()
    assert sentence(root).endswith("has no class folders in train/: expected train/CLASS/*")
    (root / "train").rmdir()
    shutil.move(root / "tmp", root / "train")
    (root / "test" / "be").mkdir()
    assert "unknown class folder in test/" in sentence(root) and "'be': did you mean bee?" in sentence(root)
    (root / "test" / "be").rmdir()
    (root / "train" / "dog").mkdir()
    assert "class folder train/dog of" in sentence(root) and "holds no image" in sentence(root)
    (root / "train" / "dog").rmdir()
    shutil.move(root / "test", root / "tests")
    assert "has neither a validation nor a test split" in sentence(root)
    (root / "test").mkdir()
    assert "test/ of" in sentence(root) and "holds no image" in sentence(root)


def test_one_class_only(make_folder) -> None:
    assert "has one class only, 'ant': expected at least two" in sentence(
        make_folder({"train": 4, "test": 2}, 8, ("ant",))
    )


def test_unreadable_images_are_left_out_with_a_warning(make_folder) -> None:
    root: Path = make_folder({"train": 10, "test": 2})
    (root / "train" / "bee" / "003.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"image train/bee/003\.png cannot be read and is left out"):
        bundle = load_data(root)
    assert len(bundle.train) + len(bundle.val) == 29
    assert "train/bee/003.png" not in bundle.train.source_names + bundle.val.source_names
    for file in (root / "test").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning):
        assert sentence(root) == "the test split has no readable image among 6"


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (IMAGES * 255, "they look like 0..255: divide by 255, or give them as uint8"),
        (IMAGES * 2 - 1, "they look normalised: leave that out, the model normalises by itself"),
        (IMAGES * float("nan"), "range from nan to nan: expected floats in [0, 1]"),
        ((IMAGES * 300).int() + 1, "expected integers in 0..255"),
        (IMAGES > 0.5, "train images have type bool: expected uint8 in 0..255 or floats in [0, 1]"),
        (IMAGES[:, :2], "train images have shape [12, 2, 8, 8]: expected [N, H, W], [N, H, W, 1 or 3]"),
        (IMAGES[:5], "train has 5 images and 12 labels"),
    ],
)
def test_images_that_would_mislead(images: torch.Tensor, expected: str) -> None:
    assert expected in sentence(((images, LABELS), GOOD))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LABELS.float(), "train labels have type float32: expected integers, class numbers from 0"),
        (LABELS - 1, "train labels contain -1: expected class numbers from 0"),
        (torch.eye(3)[LABELS].long(), "train labels have shape [12, 3]: expected one class number per image"),
        (LABELS * 100, "training labels of 'arrays' go up to 200, but only 3 classes occur"),
        (LABELS * 0, "has one class only, '0': expected at least two"),
        (LABELS.clamp(max=1), "the test split of 'arrays' has class '2', which training lacks"),
    ],
)
def test_labels_that_would_mislead(labels: torch.Tensor, expected: str) -> None:
    assert expected in sentence(((IMAGES, labels), GOOD))


def test_python_objects() -> None:
    assert "the test split of 'arrays' is empty" in sentence((GOOD, (IMAGES[:0], LABELS[:0])))
    assert "the test split is a int: expected a map-style data set" in sentence((GOOD, 3))
    assert "data lacks test" in sentence({"train": GOOD})
    assert "unknown split 'vall': did you mean val?" in sentence({"train": GOOD, "test": GOOD, "vall": GOOD})
    assert "image size 0 is out of range" in sentence("digits", image_size=0)
    assert "val_examples is 5000: expected 1 to 1436" in sentence("digits", val_examples=5000)
    assert "no class with two" in sentence(((IMAGES[:3], LABELS[:3]), GOOD))


class Items:
    """A data set of whatever it is given."""

    def __init__(self, make, n: int = 12) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        return self.make(i)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda i: {"image": 1}, "train[0] is a dict: expected a pair (image, class number)"),
        (lambda i: ("a.png", 0), "the image of train[0] is a str: expected a PIL image, a tensor or an array"),
        (lambda i: (torch.randn(3, 8, 8), 0), "the pixels of train[0] range from -"),
        (
            lambda i: (torch.rand(3, 8, 8), 0),
            "gives its first image differently each time: leave random transforms out",
        ),
        (lambda i: (Image.new("RGB", (8, 8)), "cat"), "train labels have type <U3: expected integers"),
        (
            lambda i: (Image.new("RGB", (8, 8)), torch.eye(3)[i % 3]),
            "train labels have shape [12, 3]: expected one class",
        ),
    ],
)
def test_data_set_items(make, expected: str) -> None:
    assert expected in sentence((Items(make), GOOD))


def test_data_set_without_images() -> None:
    assert "the train split is empty" in sentence((Items(None, 0), GOOD))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_found_while_streaming_stays_one_sentence(workers: int) -> None:
    scale = [1.0] * 11 + [2.0]
    data = Items(lambda i: (torch.full((3, 80, 80), 0.9 * scale[i]), i % 3))
    bundle = load_data((data, data), image_size=80)
    with pytest.raises(UserError) as caught:
        list(make_eval_loader(bundle.test, batch_size=3, workers=workers))
    assert str(caught.value).startswith("the pixels of test[11] range from 1.8 to 1.8: expected floats in [0, 1]")
    assert "\n" not in str(caught.value)


def test_nothing_readable_while_streaming(make_folder) -> None:
    root: Path = make_folder({"train": 6, "test": 2}, size=80)
    bundle = load_data(root)
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    loader = make_train_loader(bundle.train, batch_size=4, augment="inception", workers=0)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="15 images in a row cannot be read"):
        list(loader.epoch(0))


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    arrays = {"train_images": np.zeros((8, 4, 4), np.uint8), "train_labels": np.arange(8) % 2}
    np.savez(path, **arrays)
    assert f"file {str(path)!r} lacks test_images, test_labels: expected train_images, " in sentence(path)
    full = arrays | {"test_images": arrays["train_images"], "test_labels": arrays["train_labels"]}
    np.savez(path, **full, val_images=arrays["train_images"])
    assert "lacks val_labels" in sentence(path)
    np.savez(path, **full | {"train_images": np.random.RandomState(0).randint(0, 256, (8, 90, 90))})
    path.write_bytes(path.read_bytes()[:3000])
    assert "cannot be read as .npz, it may be truncated" in sentence(path)
    np.savez(path, **full | {"train_labels": np.array(["a"] * 8, object)})
    assert "cannot be read as .npz" in sentence(path)


def test_missing_package_for_a_timm_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        sentence("hfds/mnist")
        == "data 'hfds/mnist' needs the package datasets, which is not installed: pip install datasets"
    )
    assert "pip install webdataset" in sentence("wds/set")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    assert "needs the folder or address of its shards: give it as data_dir" in sentence("wds/set")


def test_timm_data_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sentence("torch/cifar10", data_dir=tmp_path)
    assert "data set 'torch/cifar10' cannot be read in" in text and "ask for download" in text

    def offline(*args, **named):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("timm.data.create_dataset", offline)
    text = sentence("torch/cifar10", data_dir=tmp_path, download=True)
    assert "Name or service not known" in text and "the network or the name may be at fault" in text


def test_loaders() -> None:
    bundle = load_data((GOOD, GOOD))
    with pytest.raises(UserError, match="13 examples are wanted, but the split has 12: expected 1 to 12"):
        as_tensors(bundle.test, 13)
    with pytest.raises(UserError, match="0 examples are wanted"):
        make_eval_loader(bundle.test, batch_size=4, n_examples=0)
    with pytest.raises(UserError, match="unknown augmentation 'flop': did you mean flip"):
        make_train_loader(bundle.train, batch_size=4, augment="flop")
    with pytest.raises(UserError, match="unknown pad_mode 'zero': did you mean zeros"):
        make_train_loader(bundle.train, batch_size=4, pad_mode="zero")
    with pytest.raises(UserError, match="batch size is 0: expected at least 1"):
        make_train_loader(bundle.train, batch_size=0)
    with pytest.raises(UserError, match="pad is 8 pixels at size 8: expected less than the size, to reflect"):
        make_train_loader(bundle.train, batch_size=4, pad=32, pad_mode="reflect")
    with pytest.raises(UserError, match="training has 9 images for 20 processes: expected two for each"):
        make_train_loader(bundle.train, batch_size=4, shard=(0, 20))
