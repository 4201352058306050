"""Recipe of free adversarial training, as re-implemented by Wong et al. (2020). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="free",
        summary="10 epochs, triangular rate 0 -> 0.04 -> 0: with 8 replays as many updates as 80",
        source="Wong et al., Fast is better than free (released code of their re-implementation)",
        values={"epochs": 10, "schedule": "cyclic", "peak": 0.5, "lr": 0.04},
        departs="the script's own default is 11 epochs; momentum moves from 0.9 to 0.8 and back there, which is "
        "torch's default; half precision there",
        api_version=1,
    ),
)
