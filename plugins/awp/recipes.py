"""Recipes of adversarial weight perturbation (Wu, Xia, Wang, 2020), with PGD and with TRADES. Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="awp",
        summary="200 epochs, rate 0.1 divided by ten at 50 % and 75 %, reflect padding",
        source="Wu et al., Adversarial Weight Perturbation, NeurIPS 2020 (released code, AT-AWP on CIFAR-10)",
        values={
            "epochs": 200,
            "schedule": "multistep",
            "milestones": "0.5,0.75",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "pad_mode": "reflect",
        },
        notes={"lr": "code for CIFAR; SVHN has 0.01", "pad_mode": "code for CIFAR-10; CIFAR-100 has zeros"},
        use="--method pgd --modifier awp -o awp.gamma=0.01 awp.start=0 --recipe awp",
        api_version=1,
    ),
    RecipeSpec(
        name="trades-awp",
        summary="200 epochs, rate 0.1 divided by ten from epochs 100 and 150 on",
        source="Wu et al., Adversarial Weight Perturbation, NeurIPS 2020 (released code, TRADES-AWP)",
        values={
            "epochs": 200,
            "schedule": "multistep",
            "milestones": "99/200,149/200",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "pad_mode": "zeros",
        },
        notes={"milestones": "code: from epochs 100 and 150, counted from 1"},
        use="--method trades --modifier awp --recipe trades-awp",
        api_version=1,
    ),
)
