"""Recipe of N-FGSM (de Jorge et al., 2022). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="n-fgsm",
        summary="30 epochs, triangular rate 0 -> 0.2 -> 0 peaking half way",
        source="de Jorge et al., Make Some Noise, arXiv:2202.01181 (released code)",
        values={"epochs": 30, "schedule": "cyclic", "peak": 0.5, "lr": 0.2},
        departs="momentum moves from 0.9 to 0.8 and back there, which is torch's default",
        api_version=1,
    ),
)
