"""Recipe of LBGAT (Cui et al., 2021). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="lbgat",
        summary="100 epochs, rate 0.02 for the first, then 0.1 divided by ten from epochs 76 and 91 on, decay 2e-4",
        source="Cui et al., LBGAT, ICCV 2021 (released code, CIFAR-100)",
        values={
            "epochs": 100,
            "schedule": "piecewise",
            "points": "0:0.2,1/100:0.2,1/100:1,75/100:1,75/100:0.1,90/100:0.1,90/100:0.01,1:0.01",
            "lr": 0.1,
            "weight_decay": 2e-4,
        },
        notes={"points": "code: 0.02 in epoch 1, drops from epochs 76 and 91, counted from 1"},
        use="--method lbgat --recipe lbgat",
        departs="no input normalisation there; eps is 0.031 there",
        api_version=1,
    ),
)
