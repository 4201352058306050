"""Modes and BatchNorm statistics of a network under attack."""

from __future__ import annotations

import torch

from timm_robust.attacks.attack_mode import attack_mode


def test_frozen_uses_batch_statistics(small_model, images):
    small_model.train()
    with torch.no_grad():
        expected = small_model(images)
        with attack_mode(small_model, "frozen"):
            frozen = small_model(images)
        with attack_mode(small_model, "eval"):
            stored = small_model(images)
    assert torch.allclose(frozen, expected, atol=1e-6)
    assert not torch.allclose(frozen, stored, atol=1e-3)


def test_stochastic_depth_follows_the_mode(images):
    """torchattacks finds modules by class name and misses timm's DropPath; the guard sets every module."""
    from timm_robust.models.factory import build_model

    model = build_model(
        "convnext_atto",
        num_classes=10,
        image_size=8,
        data_mean=[0.5] * 3,
        data_std=[0.2] * 3,
        model_kwargs={"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "drop_path_rate": 0.5},
    ).train()
    with torch.no_grad(), attack_mode(model, "eval"):
        assert torch.equal(model(images), model(images))
