"""Label noise: which labels are drawn again, and that a run learns them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from timm_robust_plugins.fgsm_rs.fgsm_rs import FGSMRS

from timm_robust.data import load_data, with_label_noise
from timm_robust.data.noise import describe_noise, redrawn
from timm_robust.errors import UserError


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 1.0])
def test_redrawn_labels(share):
    labels = np.arange(20_000) % 10
    noisy, drawn = redrawn(labels, 10, share, seed=3)
    assert drawn.sum() == round(share * 20_000) and noisy.dtype == np.int64
    assert (noisy[~drawn] == labels[~drawn]).all()
    assert (noisy != labels).mean() == pytest.approx(share * 0.9, abs=0.01)
    if share:  # over all classes, the true one too, wherever they lie
        assert np.allclose(np.bincount(noisy[drawn], minlength=10) / drawn.sum(), 0.1, atol=0.02)
        assert (noisy != labels)[drawn].mean() == pytest.approx(0.9, abs=0.02)
        assert drawn[:10_000].mean() == pytest.approx(share, abs=0.02)
    again, mask = redrawn(labels, 10, share, seed=3)
    assert (again == noisy).all() and (mask == drawn).all()
    assert share in (0.0, 1.0) or (redrawn(labels, 10, share, seed=4)[1] != drawn).any()


def test_redrawn_labels_do_not_move_between_releases():
    noisy, drawn = redrawn(np.zeros(8, dtype=np.int64), 10, 0.5, seed=0)
    assert (noisy.tolist(), drawn.nonzero()[0].tolist()) == ([0, 1, 0, 6, 0, 0, 5, 8], [1, 3, 6, 7])


def test_noise_is_on_training_labels_only(few_digits):
    bundle = load_data(few_digits)
    noisy = with_label_noise(bundle, 0.4, seed=0)
    assert noisy.val is bundle.val and noisy.test is bundle.test and noisy.train.pixels is bundle.train.pixels
    assert (noisy.train.true_labels == bundle.train.labels).all()
    assert with_label_noise(bundle, 0.0, seed=0) is bundle
    wrong = (noisy.train.labels != bundle.train.labels).sum()
    told = describe_noise(noisy, 0.4)
    assert told.startswith(f"label noise 0.4: {wrong} of 270 training labels are wrong, ") and "expected 36.0%" in told


def test_a_run_learns_the_noisy_labels(train_small, few_digits, capfd, monkeypatch):
    targets = {}

    def kept(self, batch, perturbed, output):
        targets.update(zip(batch.index.tolist(), batch.targets.tolist(), strict=True))

    monkeypatch.setattr(FGSMRS, "commit", kept)
    recipe = {"label_noise": 0.4, "check_attack": "pgd-1-1"}
    result = train_small(epochs=1, recipe_args=recipe, seed=5, quiet=False)
    assert "label noise 0.4: " in capfd.readouterr().err
    assert "diagnosis" not in result.history[0]
    assert json.loads((result.output / "manifest.json").read_text())["recipe"]["label_noise"] == 0.4
    true = load_data(few_digits, seed=5).train.labels
    assert [targets[i] for i in range(270)] == redrawn(true, 10, 0.4, 5)[0].tolist()


def test_the_share_is_checked(train_small):
    with pytest.raises(UserError, match=r"'label_noise' is 1\.5: expected 0 to 1"):
        train_small(recipe_args={"label_noise": 1.5})
