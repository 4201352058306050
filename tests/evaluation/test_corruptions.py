"""Accuracy on corrupted images, from arrays and from folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.support import corrupted
from timm_robust.errors import UserError
from timm_robust.evaluation.corruptions import (
    ALEXNET_ERRORS,
    CORRUPTIONS,
    corruption_accuracy,
    mean_corruption_error,
    open_corruptions,
)


def test_arrays_of_corruptions(trained, cifar_c):
    model = trained[0]
    told = []
    found = corruption_accuracy(model, open_corruptions(cifar_c), 15, batch_size=4, progress=lambda *a: told.append(a))
    assert list(found.accuracies) == list(CORRUPTIONS) and found.n_examples == 15 and found.mce is None
    labels = np.load(cifar_c / "labels.npy")
    for name, row in found.accuracies.items():
        pixels = np.load(cifar_c / f"{name}.npy").astype(np.float64) / 255
        for severity, value in enumerate(row):
            part = slice(20 * severity, 20 * severity + 15)
            with torch.no_grad():
                logits = model(torch.from_numpy(pixels[part]).permute(0, 3, 1, 2).float())
            assert value == pytest.approx(np.mean(logits.argmax(1).numpy() == labels[part]))
    assert found.mean == pytest.approx(np.mean(list(found.accuracies.values())))
    assert found.by_severity[0] > found.by_severity[4]
    assert told[-1] == ("jpeg_compression 5", 75, 75)
    assert corruption_accuracy(model, open_corruptions(cifar_c, ["fog"])).n_examples == 20


@pytest.mark.parametrize("deep", [False, True], ids=["flat", "grouped"])
def test_folders_of_corruptions(trained, few_digits, tmp_path, deep):
    """As ImageNet-C has them; the first images are by file name, so that classes mix."""
    images, targets = few_digits[1][0][:20], few_digits[1][1][:20]
    names = sorted({str(int(label)) for label in targets})
    for severity in range(1, 6):
        for i, pixels in enumerate(corrupted(images, severity, 3)):
            place = tmp_path / ("weather/fog" if deep else "fog") / str(severity) / str(int(targets[i]))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"val_{i:04}.png")
    model = trained[0]
    classes = [str(number) for number in range(10)]
    found = corruption_accuracy(model, open_corruptions(tmp_path, ["fog"], class_names=classes, image_size=8), 12)
    for severity, value in enumerate(found.accuracies["fog"], 1):
        x = torch.from_numpy(corrupted(images, severity, 3)[:12]).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            assert value == pytest.approx((model(x).argmax(1) == targets[:12]).float().mean().item())
    with pytest.raises(UserError, match="unknown class folder in .*fog/1"):
        open_corruptions(tmp_path, ["fog"], class_names=[*names[1:], "x"], image_size=8)
    with pytest.raises(UserError, match="lacks gaussian_noise/, shot_noise/, impulse_noise/ and 11 more"):
        open_corruptions(tmp_path, image_size=8)


def test_mce_is_relative_to_alexnet():
    assert len(CORRUPTIONS) == 15
    alexnet = {name: (1 - error,) * 5 for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(alexnet) == pytest.approx(1)
    half = {name: (1 - error / 2,) * 5 for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(half) == pytest.approx(0.5)
    # ResNet-50's published errors in percent (Hendrycks and Dietterich, Table 1): mCE 76.7
    resnet50 = dict(zip(CORRUPTIONS, (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77), strict=True))
    relative = {name: (1 - ce / 100 * ALEXNET_ERRORS[name],) * 5 for name, ce in resnet50.items()}
    assert mean_corruption_error(relative) == pytest.approx(0.767, abs=0.002)


def test_mistakes_with_corruptions(trained, cifar_c, tmp_path):
    model = trained[0]
    with pytest.raises(UserError, match="examples is 21, .* has 20 images for each severity"):
        corruption_accuracy(model, open_corruptions(cifar_c), 21)
    with pytest.raises(UserError, match="unknown corruption 'fogg': did you mean fog"):
        open_corruptions(cifar_c, ["fogg"])
    with pytest.raises(UserError, match="'nowhere' is no folder"):
        open_corruptions("nowhere")
    with pytest.raises(UserError, match="class number 9, the model has only 3 classes"):
        corruption_accuracy(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval(), open_corruptions(cifar_c))
    content = (cifar_c / "fog.npy").read_bytes()
    (cifar_c / "fog.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="fog.npy cannot be read, it may be truncated"):
        corruption_accuracy(model, open_corruptions(cifar_c, ["fog"]))
    np.save(cifar_c / "fog.npy", np.zeros((100, 8, 8, 3)))
    with pytest.raises(UserError, match=r"fog.npy is float64 \[100, 8, 8, 3\]: expected uint8 \[100, H, W, 3\]"):
        corruption_accuracy(model, open_corruptions(cifar_c, ["fog"]))
    (cifar_c / "snow.npy").unlink()
    with pytest.raises(UserError, match="lacks snow.npy"):
        open_corruptions(cifar_c)
