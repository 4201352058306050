"""Registers self-supervised adversarial training, and the pre-training of its encoder."""

from __future__ import annotations

from collections.abc import Iterator

from timm_robust.plugin import DefenseSpec, Reference, hookimpl


@hookimpl
def timm_robust_defenses() -> Iterator[DefenseSpec]:
    yield DefenseSpec(
        name="ssat",
        summary="fine-tunes an encoder so that clean and adversarial features share information; made for k-NN",
        reference=Reference(title="Self-supervised Adversarial Training", arxiv="1911.06470", venue="ICASSP 2020"),
        api_version=1,
        target="timm_robust_plugins.ssat.ssat:SSAT",
        config="timm_robust_plugins.ssat.options:SsatOptions",
        # a pre-trained encoder is unlearned by the budget of training from scratch
        recommends={
            "epochs": 1,
            "batch_size": 100,
            "optimizer": "adam",
            "lr": 1e-4,
            "schedule": "constant",
            "weight_decay": 1e-5,
            "augment": "none",
        },
        teachers={"encoder": "ssat-pretrain"},
    )
    yield DefenseSpec(
        name="ssat-pretrain",
        summary="no defense: pre-trains ssat's encoder without labels, on two augmented views of each image (AMDIM)",
        reference=Reference(
            title="Learning Representations by Maximizing Mutual Information Across Views",
            arxiv="1906.00910",
            venue="NeurIPS 2019",
        ),
        api_version=1,
        target="timm_robust_plugins.ssat.ssat:Pretraining",
        config="timm_robust_plugins.ssat.options:PretrainingOptions",
        recommends={
            "batch_size": 200,
            "optimizer": "adam",
            "lr": 2e-4,
            "schedule": "multistep",
            "milestones": "250/300,280/300",
            "lr_decay": 0.2,
            "warmup_epochs": 2.0,
            "weight_decay": 1e-5,
            "augment": "flip",  # shared by both views; what differs between them is drawn by the method
        },
    )
