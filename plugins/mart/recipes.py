"""Recipe of MART (Wang et al., 2020). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="mart",
        summary="120 epochs, rate 0.01 divided by ten from epochs 75, 90 and 100 on, decay 3.5e-3",
        source="Wang et al., MART, ICLR 2020 (released code, ResNet-18)",
        values={
            "epochs": 120,
            "schedule": "multistep",
            "milestones": "74/120,89/120,99/120",
            "lr": 0.01,
            "weight_decay": 3.5e-3,
        },
        notes={
            "epochs": "code for ResNet-18; 90 for WideResNet-34-10",
            "milestones": "code: from epochs 75, 90 and 100, counted from 1",
            "lr": "code for ResNet-18; 0.1 for WideResNet-34-10",
            "weight_decay": "code for ResNet-18; 7e-4 for WideResNet-34-10",
        },
        use="--method mart --recipe mart",
        departs="no input normalisation there; eps is 0.031 there",
        api_version=1,
    ),
)
