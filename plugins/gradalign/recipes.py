"""Recipe of GradAlign (Andriushchenko and Flammarion, 2020). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="gradalign",
        summary="30 epochs, rate straight up to 0.3 at two fifths and down to 0",
        source="Andriushchenko and Flammarion, arXiv:2007.02617 (released code; no input normalisation there)",
        values={"epochs": 30, "schedule": "piecewise", "points": "0:0,0.4:1,1:0", "lr": 0.3},
        api_version=1,
    ),
)
