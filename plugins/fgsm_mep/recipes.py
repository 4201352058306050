"""Recipe of FGSM-MEP (Jia et al., 2022). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="fgsm-mep",
        summary="110 epochs, rate 0.1 divided by ten after 100 and 105",
        source="Jia et al., Prior-Guided Adversarial Initialization, ECCV 2022 (released code)",
        values={"epochs": 110, "schedule": "multistep", "milestones": "100/110,105/110", "lr": 0.1},
        api_version=1,
    ),
)
