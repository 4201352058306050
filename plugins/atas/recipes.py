"""Recipes of ATAS (Huang et al., 2022), for CIFAR and for ImageNet. Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="atas",
        summary="30 epochs, rate 0.1 divided by ten after 24 and 28",
        source="Huang et al., Fast Adversarial Training with Adaptive Step Size (released code, CIFAR)",
        values={"epochs": 30, "schedule": "multistep", "milestones": "24/30,28/30", "lr": 0.1},
        api_version=1,
    ),
    RecipeSpec(
        name="atas-imagenet",
        summary="90 epochs, rate 0.1 divided by ten after 50 and 75, decay 1e-4, crops of the padded image",
        source="Huang et al., arXiv:2206.02417 (released code, ImageNet; there crops of 224 from 256 pixels)",
        values={
            "epochs": 90,
            "schedule": "multistep",
            "milestones": "50/90,75/90",
            "lr": 0.1,
            "weight_decay": 1e-4,
            "augment": "crop-flip",
        },
        api_version=1,
    ),
)
