"""Names of the augmentations, which recipes offer and loaders apply. Torch-free."""

from __future__ import annotations

AUGMENTATIONS = (
    *("crop-flip", "crop", "flip", "none", "inception", "cutout"),
    *("idbh", "idbh-weak", "idbh-strong", "idbh-svhn"),
)

CROPPED = ("crop-flip", "crop", "cutout")
"""Augmentations with a random crop of the padded image."""

FLIPPED = ("crop-flip", "flip", "cutout", "inception")
"""Augmentations with a random horizontal flip."""
