"""Recipe of SEAT (Li and Yu, 2022). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="seat",
        summary="30 epochs, one cycle to 0.3",
        source="Li and Yu, Stable and Efficient Adversarial Training, arXiv:2210.05373 (released code)",
        values={"epochs": 30, "schedule": "onecycle", "lr": 0.3},
        api_version=1,
    ),
)
