"""Recipe of self-guided label refinement (Li et al., 2024). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="sglr",
        summary="200 epochs, rate 0.1 divided by ten from epochs 100 and 150 on",
        source="Li et al., Self-Guided Label Refinement, CVPR 2024 (code released with an earlier draft)",
        values={
            "epochs": 200,
            "schedule": "multistep",
            "milestones": "99/200,149/200",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "pad_mode": "zeros",
        },
        notes={"milestones": "code: from epochs 100 and 150, counted from 1"},
        use="--method sglr --recipe sglr",
        departs="no input normalisation there; the best epoch is chosen on the test set there",
        api_version=1,
    ),
)
