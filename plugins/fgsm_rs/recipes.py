"""Recipe of fast adversarial training (Wong, Rice, Kolter, 2020). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="fast",
        summary="15 epochs, triangular rate 0 -> 0.2 -> 0 peaking half way",
        source="Wong, Rice, Kolter, Fast is better than free, ICLR 2020 (released code)",
        values={"epochs": 15, "schedule": "cyclic", "peak": 0.5, "lr": 0.2},
        use="--method fgsm-rs --recipe fast",
        departs="momentum moves from 0.9 to 0.8 and back there, which is torch's default; half precision there",
        api_version=1,
    ),
)
