"""Recipes by name: the settings of published codes, so that their numbers can be repeated. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from timm_robust.errors import UserError, unknown
from timm_robust.options import check_value
from timm_robust.recipes.recipe import Recipe
from timm_robust.threat import SMALL_IMAGE


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of recipe values with the reason for them.

    Attributes:
        source: where the values come from.
        notes: where single values come from, or what should be known of them.
        use: arguments of `timm-robust train` that go with it, where it was made for one method.
        departs: what of the source it does not give.
    """

    name: str
    summary: str
    source: str
    values: Mapping[str, Any]
    notes: Mapping[str, str] = field(default_factory=dict)
    use: str = ""
    departs: str = ""

    def source_of(self, setting: str) -> str:
        """Where the value of one setting comes from."""
        return self.notes.get(setting) or (self.source if setting in self.values else "default")


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="default",
            summary="30 epochs, one cycle to 0.2: strong for images of at most 64 pixels at a small budget",
            source="our choice; one cycle as in fast adversarial training codes",
            values={},
        ),
        Preset(
            name="digits",
            summary="ten epochs of AdamW on the embedded 8x8 digits: any network learns in a minute",
            source="our choice; no mirroring, because a mirrored digit is another character",
            values={"epochs": 10, "batch_size": 64, "optimizer": "adamw", "lr": 0.002, "augment": "crop"},
        ),
        Preset(
            name="fast",
            summary="15 epochs, triangular rate 0 -> 0.2 -> 0 peaking half way",
            source="Wong, Rice, Kolter, Fast is better than free, ICLR 2020 (released code)",
            values={"epochs": 15, "schedule": "cyclic", "peak": 0.5, "lr": 0.2},
            use="--method fgsm-rs --recipe fast",
            departs="momentum moves from 0.9 to 0.8 and back there, which is torch's default; half precision there",
        ),
        Preset(
            name="rice",
            summary="200 epochs, rate 0.1 divided by ten at 50 % and 75 %, reflect padding",
            source="Rice, Wong, Kolter, Overfitting in adversarially robust deep learning, ICML 2020 (released code)",
            values={"epochs": 200, "schedule": "multistep", "milestones": "0.5,0.75", "lr": 0.1, "pad_mode": "reflect"},
            notes={
                "milestones": "code: the rate, too, falls on the last step before",
                "lr": "code for CIFAR; SVHN has 0.01",
            },
            use="--method pgd --recipe rice",
        ),
        Preset(
            name="bag-of-tricks",
            summary="110 epochs, rate 0.1 divided by ten after 100 and 105, decay 5e-4 on everything, reflect padding",
            source="Pang et al., Bag of Tricks for Adversarial Training, ICLR 2021, arXiv:2010.00467",
            values={
                "epochs": 110,
                "batch_size": 128,
                "optimizer": "momentum",
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "decay_norm_bias": True,
                "schedule": "multistep",
                "milestones": "100/110,105/110",
                "lr_decay": 0.1,
                "warmup_epochs": 0.0,
                "label_smoothing": 0.0,
                "augment": "crop-flip",
                "pad": 4,
                "pad_mode": "reflect",
                "eps_warmup_epochs": 0.0,
                "clip_grad": 0.0,
                "ema": 0.0,
                "check_attack": "pgd-10-1",
            },
            notes={
                "epochs": "README: early stopping, right after the drops, is critical",
                "batch_size": "README and code: 128; for others lr in proportion, as with lr_base_size=128",
                "optimizer": "README: momentum SGD; code: without Nesterov",
                "lr": "README and code",
                "momentum": "code: 0.9",
                "weight_decay": "README: critical; abstract: different values, over 7 points of robust accuracy",
                "decay_norm_bias": "code: all parameters, BatchNorm and biases included",
                "schedule": "README and code: piecewise constant",
                "milestones": "README: 0.01 at 100, 0.001 at 105; in the code, too, on the last step before",
                "lr_decay": "README: a tenth each time",
                "warmup_epochs": "README: insignificant",
                "label_smoothing": "README: useful, moderate only; 0.1 or 0.2, not in the baseline",
                "augment": "code: random crop and flip",
                "pad": "code: 4",
                "pad_mode": "code: reflect",
                "eps_warmup_epochs": "README: insignificant; 15 in the code where it is used",
                "clip_grad": "code: none",
                "ema": "code: none",
                "check_attack": "code: the epoch with the best PGD-10 is kept, there on the test set",
            },
            use="--method pgd -o attack_bn=eval --recipe bag-of-tricks",
            departs="the best epoch is chosen on held-out training images, there on the test set; BatchNorm's mode in "
            "attacks is the method's option, given above; the network there is WideResNet-34-10",
        ),
        Preset(
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
        ),
        Preset(
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
        ),
        Preset(
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
        ),
        Preset(
            name="mart",
            summary="120 epochs, rate 0.01 divided by ten from epochs 75, 90 and 100 on, decay 3.5e-3",
            source="Wang et al., MART, ICLR 2020 (released code, ResNet-18)",
            values={
                "epochs": 120,
                "schedule": "multistep",
                "milestones": "74/120,89/120,99/120",
                "lr": 0.01,
                "weight_decay": 3.5e-3,
            },
            notes={
                "epochs": "code for ResNet-18; 90 for WideResNet-34-10",
                "milestones": "code: from epochs 75, 90 and 100, counted from 1",
                "lr": "code for ResNet-18; 0.1 for WideResNet-34-10",
                "weight_decay": "code for ResNet-18; 7e-4 for WideResNet-34-10",
            },
            use="--method mart --recipe mart",
            departs="no input normalisation there; eps is 0.031 there",
        ),
        Preset(
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
        ),
        Preset(
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
        ),
        Preset(
            name="kd-swa",
            summary="200 epochs, rate 0.1 divided by ten after 50 and 150",
            source="Chen et al., Robust Overfitting may be mitigated, ICLR 2021 (released code, CIFAR-10)",
            values={
                "epochs": 200,
                "schedule": "multistep",
                "milestones": "50/200,150/200",
                "lr": 0.1,
                "weight_decay": 5e-4,
                "augment": "crop-flip",
                "pad_mode": "zeros",
            },
            notes={
                "milestones": "code: 50 and 150, not 100 and 150 as elsewhere",
                "augment": "code for CIFAR-10; CIFAR-100 rotates by up to 15 degrees too, which is not there",
            },
            use="--method kd-swa --modifier swa --recipe kd-swa",
            departs="5,000 training images are held out there",
        ),
        Preset(
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
        ),
        Preset(
            name="lbgat",
            summary="100 epochs, rate 0.02 for the first, then 0.1 divided by ten from epochs 76 and 91 on, decay 2e-4",
            source="Cui et al., LBGAT, ICCV 2021 (released code, CIFAR-100)",
            values={
                "epochs": 100,
                "schedule": "piecewise",
                "points": "0:0.2,1/100:0.2,1/100:1,75/100:1,75/100:0.1,90/100:0.1,90/100:0.01,1:0.01",
                "lr": 0.1,
                "weight_decay": 2e-4,
            },
            notes={"points": "code: 0.02 in epoch 1, drops from epochs 76 and 91, counted from 1"},
            use="--method lbgat --recipe lbgat",
            departs="no input normalisation there; eps is 0.031 there",
        ),
        Preset(
            name="fat",
            summary="120 epochs, rate 0.1, 0.01 from epoch 60, 0.001 from 90, 0.0005 from 110 on, decay 2e-4",
            source="Zhang et al., Friendly Adversarial Training, ICML 2020 (released code)",
            values={
                "epochs": 120,
                "schedule": "piecewise",
                "points": "0:1,59/120:1,59/120:0.1,89/120:0.1,89/120:0.01,109/120:0.01,109/120:0.005,1:0.005",
                "lr": 0.1,
                "weight_decay": 2e-4,
            },
            notes={"points": "code: from epochs 60, 90 and 110, counted from 1"},
            use="--method pgd -o stop_after=0:1,50/120:2,90/120:3 attack_bn=eval --recipe fat",
            departs="each attack step adds noise of 0.001 there; no input normalisation; eps is 0.031 there",
        ),
        Preset(
            name="idbh",
            summary="200 epochs, rate 0.1 divided by ten after 100 and 150, strong augmentation",
            source="Li and Spratling, Data Augmentation Alone Can Improve Adversarial Training, ICLR 2023 (code)",
            values={
                "epochs": 200,
                "schedule": "multistep",
                "milestones": "100/200,150/200",
                "lr": 0.1,
                "weight_decay": 5e-4,
                "augment": "idbh-strong",
                "ema": 0.0,
            },
            notes={
                "augment": "README for PreActResNet-18; idbh-weak for WideResNet-34-10, idbh-svhn for SVHN",
                "ema": "README for PreActResNet-18; averaging with 0.999 from the first step on for WideResNet-34-10",
            },
            use="--method pgd --recipe idbh",
        ),
        Preset(
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
        ),
        Preset(
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
        ),
        Preset(
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
        ),
        Preset(
            name="imagenet",
            summary="100 epochs, rate 0.1 divided by ten at 30, 60 and 90, decay 1e-4 on weights only",
            source="Xie et al., Smooth Adversarial Training, arXiv:2006.14536 (code; no colour jitter or lighting)",
            values={
                "epochs": 100,
                "schedule": "multistep",
                "milestones": "0.3,0.6,0.9",
                "lr": 0.1,
                "batch_size": 256,
                "weight_decay": 1e-4,
                "decay_norm_bias": False,
                "optimizer": "sgd",
                "augment": "inception",
                "warmup_epochs": 5.0,
            },
        ),
        Preset(
            name="atas",
            summary="30 epochs, rate 0.1 divided by ten after 24 and 28",
            source="Huang et al., Fast Adversarial Training with Adaptive Step Size (released code, CIFAR)",
            values={"epochs": 30, "schedule": "multistep", "milestones": "24/30,28/30", "lr": 0.1},
        ),
        Preset(
            name="atas-imagenet",
            summary="90 epochs, rate 0.1 divided by ten after 50 and 75, decay 1e-4, crops of the padded image",
            source="Huang et al., arXiv:2206.02417 (released code, ImageNet; there crops of 224 from 256 pixels)",
            values={
                "epochs": 90,
                "schedule": "multistep",
                "milestones": "50/90,75/90",
                "lr": 0.1,
                "weight_decay": 1e-4,
                "augment": "crop-flip",
            },
        ),
        Preset(
            name="seat",
            summary="30 epochs, one cycle to 0.3",
            source="Li and Yu, Stable and Efficient Adversarial Training, arXiv:2210.05373 (released code)",
            values={"epochs": 30, "schedule": "onecycle", "lr": 0.3},
        ),
        Preset(
            name="n-fgsm",
            summary="30 epochs, triangular rate 0 -> 0.2 -> 0 peaking half way",
            source="de Jorge et al., Make Some Noise, arXiv:2202.01181 (released code)",
            values={"epochs": 30, "schedule": "cyclic", "peak": 0.5, "lr": 0.2},
            departs="momentum moves from 0.9 to 0.8 and back there, which is torch's default",
        ),
        Preset(
            name="gradalign",
            summary="30 epochs, rate straight up to 0.3 at two fifths and down to 0",
            source="Andriushchenko and Flammarion, arXiv:2007.02617 (released code; no input normalisation there)",
            values={"epochs": 30, "schedule": "piecewise", "points": "0:0,0.4:1,1:0", "lr": 0.3},
        ),
        Preset(
            name="fgsm-mep",
            summary="110 epochs, rate 0.1 divided by ten after 100 and 105",
            source="Jia et al., Prior-Guided Adversarial Initialization, ECCV 2022 (released code)",
            values={"epochs": 110, "schedule": "multistep", "milestones": "100/110,105/110", "lr": 0.1},
        ),
        Preset(
            name="gat",
            summary="100 epochs, batch 64, rate 0.1 divided by ten after 71 and 86",
            source="Sriramanan et al., Guided Adversarial Attack, arXiv:2011.14969 (released code)",
            values={"epochs": 100, "batch_size": 64, "schedule": "multistep", "milestones": "0.71,0.86", "lr": 0.1},
        ),
        Preset(
            name="nuat",
            summary="100 epochs, batch 64, rate up to 0.1, down to 0.02, then two drops",
            source="Sriramanan et al., NuAT, NeurIPS 2021 (released code)",
            values={
                "epochs": 100,
                "batch_size": 64,
                "schedule": "piecewise",
                "points": "0:0,0.4:1,0.8:0.2,0.86:0.2,0.86:0.02,0.91:0.02,0.91:0.002,1:0.002",
                "lr": 0.1,
            },
        ),
        Preset(
            name="nuat-wa",
            summary="100 epochs, batch 64, rate up to 0.1 at a quarter and down to 0; weights averaged",
            source="Sriramanan et al., NuAT with weight averaging (released code; with -o weight=4 ramp_share=1)",
            values={
                "epochs": 100,
                "batch_size": 64,
                "schedule": "piecewise",
                "points": "0:0,0.25:1,1:0",
                "lr": 0.1,
                "ema": 0.9998,
            },
        ),
        Preset(
            name="free",
            summary="10 epochs, triangular rate 0 -> 0.04 -> 0: with 8 replays as many updates as 80",
            source="Wong et al., Fast is better than free (released code of their re-implementation)",
            values={"epochs": 10, "schedule": "cyclic", "peak": 0.5, "lr": 0.04},
            departs="the script's own default is 11 epochs; momentum moves from 0.9 to 0.8 and back there, which is "
            "torch's default; half precision there",
        ),
    )
}


def default_preset(data: str, image_size: int) -> str:
    """The preset for a run that names none: by data set and image size."""
    if data == "digits":
        return "digits"
    return "default" if image_size <= SMALL_IMAGE else "imagenet"


def make_recipe(preset: str, recommended: Mapping[str, Any], chosen: Mapping[str, Any]) -> Recipe:
    """The recipe of a run: defaults < preset < the defense's recommendation < the user.

    Raises:
        UserError: unknown preset or setting, or a value out of its bounds.
    """
    if preset not in PRESETS:
        raise unknown("recipe", preset, PRESETS, hint="see timm-robust recipes")
    known = {field.name: field for field in fields(Recipe)}
    values: dict[str, Any] = {}
    for source in (PRESETS[preset].values, recommended, chosen):
        for name, value in source.items():
            if name not in known:
                raise unknown("recipe setting", name, known, hint="see timm-robust recipes")
            values[name] = check_value(known[name], value, owner="recipe setting")
    recipe = replace(Recipe(), **values)
    if recipe.peak in (0.0, 1.0) and recipe.schedule in ("onecycle", "cyclic"):
        raise UserError(f"recipe setting 'peak' is {recipe.peak:g}: expected a share between 0 and 1, both excluded")
    return recipe
