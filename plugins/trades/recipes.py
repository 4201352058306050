"""Recipes for TRADES: the authors' own, one for generated images (Wang et al., 2023), and our strongest. Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="trades",
        summary="76 epochs, rate 0.1 divided by ten for the last two, decay 2e-4",
        source="Zhang et al., TRADES, ICML 2019 (released code, CIFAR-10)",
        values={"epochs": 76, "schedule": "multistep", "milestones": "74/76", "lr": 0.1, "weight_decay": 2e-4},
        notes={
            "epochs": "code: 76, so that training stops right after the first drop",
            "milestones": "code: from epoch 75, counted from 1; longer runs have drops at 90 and 100 too",
            "weight_decay": "code: 2e-4; Bag of Tricks has 5e-4 and 110 epochs, and is robuster",
        },
        use="--method trades --recipe trades",
        departs="no input normalisation there; eps is 0.031 there, which published numbers belong to",
        api_version=1,
    ),
    RecipeSpec(
        name="dm",
        summary="400 epochs, batch 512, one cycle to 0.2 with a short warm-up, Nesterov, averaged weights",
        source="Wang et al., Better Diffusion Models Further Improve Adversarial Training, ICML 2023 (README)",
        values={
            "epochs": 400,
            "batch_size": 512,
            "optimizer": "sgd",
            "lr": 0.2,
            "schedule": "onecycle",
            "peak": 0.025,
            "cycle_momentum": True,
            "weight_decay": 5e-4,
            "decay_norm_bias": False,
            "label_smoothing": 0.09,
            "ema": 0.995,
        },
        notes={
            "epochs": "README, for a million generated images, 70 % of each batch; as long as on the real ones",
            "optimizer": "code: SGD with Nesterov momentum, which is timm's `sgd`",
            "schedule": "code: stepped once per epoch, here after each step",
            "peak": "code: 2.5 % of the run",
            "cycle_momentum": "code: torch's default, so momentum moves between 0.95 and 0.85",
            "decay_norm_bias": "code: all but BatchNorm; here the classifier's bias is not decayed either",
            "label_smoothing": "README: 0.1, which its code spreads over all ten classes: 0.09 over the other nine",
            "ema": "code: from 2.5 % of the run on, its decay rising to 0.995; here 0.995 from the start",
        },
        use="--method trades -o beta=5 attack_bn=frozen --extra-data GENERATED --recipe dm",
        departs="the attack starts at a uniform point there; BatchNorm's momentum is 1 in the first step and 0.01 "
        "later there; the network there is WideResNet-28-10 with SiLU",
        api_version=1,
    ),
    RecipeSpec(
        name="strong",
        summary="100 epochs, one cycle to 0.2, Nesterov, weak IDBH augmentation, averaged weights",
        source="our choice, for half an hour of a fast GPU; not measured yet",
        values={
            "epochs": 100,
            "optimizer": "sgd",
            "lr": 0.2,
            "schedule": "onecycle",
            "weight_decay": 5e-4,
            "augment": "idbh-weak",
            "ema": 0.999,
        },
        notes={
            "epochs": "as many as fit with TRADES and AWP; regularised as it is, it should not overfit",
            "optimizer": "as in the one-cycle recipes of HAT and DM-Improves-AT",
            "lr": "as in the one-cycle recipes of HAT and DM-Improves-AT",
            "weight_decay": "Bag of Tricks: the setting that matters most",
            "augment": "IDBH's authors take the weak one where weights are perturbed or averaged",
            "ema": "a thousand steps: two and a half epochs of CIFAR-10",
        },
        use="--method trades --modifier awp --activation silu --recipe strong",
        api_version=1,
    ),
)
