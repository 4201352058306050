"""Recipe of helper-based adversarial training (Rade and Moosavi-Dezfooli, 2022). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="hat",
        summary="50 epochs, one cycle to 0.21 at a quarter, Nesterov",
        source="Rade and Moosavi-Dezfooli, HAT, ICLR 2022 (released code, CIFAR-10 without extra data)",
        values={
            "epochs": 50,
            "optimizer": "sgd",
            "schedule": "onecycle",
            "peak": 0.25,
            "cycle_momentum": True,
            "lr": 0.21,
            "weight_decay": 5e-4,
        },
        notes={
            "optimizer": "code: SGD with Nesterov momentum, which is timm's `sgd`",
            "cycle_momentum": "code: torch's default, so momentum moves between 0.95 and 0.85",
            "peak": "code: 0.25",
        },
        use="--method hat --recipe hat",
        departs="no input normalisation there",
        api_version=1,
    ),
)
