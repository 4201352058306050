"""Recipe for logit squeezing; torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="logit-squeeze-quick",
        summary="two epochs, one cycle to 0.1: a first look, not a result",
        source="our choice",
        api_version=1,
        values={"epochs": 2, "schedule": "onecycle", "lr": 0.1},
        notes={"lr": "half of the host's default"},
        use="--method logit-squeeze -o weight=0.02 --recipe logit-squeeze-quick",
    ),
)
