"""Recipe of distillation with weight averaging (Chen et al., 2021). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="kd-swa",
        summary="200 epochs, rate 0.1 divided by ten after 50 and 150",
        source="Chen et al., Robust Overfitting may be mitigated, ICLR 2021 (released code, CIFAR-10)",
        values={
            "epochs": 200,
            "schedule": "multistep",
            "milestones": "50/200,150/200",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "augment": "crop-flip",
            "pad_mode": "zeros",
        },
        notes={
            "milestones": "code: 50 and 150, not 100 and 150 as elsewhere",
            "augment": "code for CIFAR-10; CIFAR-100 rotates by up to 15 degrees too, which is not there",
        },
        use="--method kd-swa --modifier swa --recipe kd-swa",
        departs="5,000 training images are held out there",
        api_version=1,
    ),
)
