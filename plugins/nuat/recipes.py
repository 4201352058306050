"""Recipes of NuAT (Sriramanan et al., 2021), without and with weight averaging. Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="nuat",
        summary="100 epochs, batch 64, rate up to 0.1, down to 0.02, then two drops",
        source="Sriramanan et al., NuAT, NeurIPS 2021 (released code)",
        values={
            "epochs": 100,
            "batch_size": 64,
            "schedule": "piecewise",
            "points": "0:0,0.4:1,0.8:0.2,0.86:0.2,0.86:0.02,0.91:0.02,0.91:0.002,1:0.002",
            "lr": 0.1,
        },
        api_version=1,
    ),
    RecipeSpec(
        name="nuat-wa",
        summary="100 epochs, batch 64, rate up to 0.1 at a quarter and down to 0; weights averaged",
        source="Sriramanan et al., NuAT with weight averaging (released code; with -o weight=4 ramp_share=1)",
        values={
            "epochs": 100,
            "batch_size": 64,
            "schedule": "piecewise",
            "points": "0:0,0.25:1,1:0",
            "lr": 0.1,
            "ema": 0.9998,
        },
        api_version=1,
    ),
)
