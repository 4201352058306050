"""Recipe of RDED's student (Sun et al., 2024). Torch-free."""

from __future__ import annotations

from timm_robust.plugin import RecipeSpec

RECIPES = (
    RecipeSpec(
        name="rded-student",
        summary="300 epochs of AdamW on a distilled set, half a cosine from 0.001 to half of it, mirrors",
        source="Sun et al., RDED, CVPR 2024 (released code, ResNet-18 on ten classes at 10 images per class)",
        values={
            "epochs": 300,
            "batch_size": 50,
            "optimizer": "adamw",
            "lr": 0.001,
            "weight_decay": 0.01,
            "decay_norm_bias": False,
            "schedule": "cosine",
            "cosine_span": 2.0,
            "augment": "flip",
            "check_attack": "clean",
            "check_examples": 500,
        },
        notes={
            "batch_size": "code: 10, 50, 100 at 1, 10, 50 images per class; twice that for 100 and 1,000 classes, "
            "100 for Tiny-ImageNet, never more than there are images",
            "lr": "code for ResNet and ConvNet; 0.0005 VGG-11, 0.002 EfficientNet-B0, 0.0025 MobileNet-V2, 0.0001 "
            "AlexNet, ViT-B/16 and Swin-V2-T",
            "weight_decay": "code: 0.01 on weights of more than one dimension",
            "cosine_span": "code: half of a cosine over twice the epochs, set once per epoch, here at each step",
            "augment": "code: patches shuffled, a region, mirrors, CutMix; all but the mirrors belong to the "
            "method. For images that must not be mirrored: --set augment=none",
            "check_attack": "ours: a standard student is not robust; for a robust one --set check_attack=pgd-10-1",
            "check_examples": "ours: an epoch has few images, its check should not cost more",
        },
        use="--method rded-student --recipe rded-student",
        departs="the best epoch is chosen on held-out images, there it is the best of several test accuracies; "
        "images are normalised as each network asks for, there always with ImageNet's statistics; labels are "
        "computed as they are needed, and cannot be stored",
        api_version=1,
    ),
)
