"""Recipe of temporal ensembling (Dong et al., 2022). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="te",
        summary="200 epochs, rate 0.1 divided by ten after 100 and 150",
        source="Dong et al., Exploring Memorization in Adversarial Training, ICLR 2022 (released code)",
        values={
            "epochs": 200,
            "schedule": "multistep",
            "milestones": "100/200,150/200",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "augment": "crop-flip",
            "pad_mode": "zeros",
        },
        notes={
            "lr": "code; for SVHN 0.01 (from memory)",
            "augment": "code for CIFAR; for SVHN none: --set augment=none",
        },
        use="--method te --recipe te",
        departs="no input normalisation there; the best epoch is chosen on the test set there",
        api_version=1,
    ),
)
