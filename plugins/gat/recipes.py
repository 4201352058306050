"""Recipe of guided adversarial training (Sriramanan et al., 2020). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="gat",
        summary="100 epochs, batch 64, rate 0.1 divided by ten after 71 and 86",
        source="Sriramanan et al., Guided Adversarial Attack, arXiv:2011.14969 (released code)",
        values={"epochs": 100, "batch_size": 64, "schedule": "multistep", "milestones": "0.71,0.86", "lr": 0.1},
        api_version=1,
    ),
)
