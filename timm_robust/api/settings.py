"""Settings of a training run: every argument of `train`, declared once.

The command line, YAML files, the manifest, the check of a resumed run, and the arguments that all runs of a comparison
share follow from these fields; a test keeps the signature and docstring of `train` equal to them. Torch-free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from timm_robust.runs.folder import as_plain

if TYPE_CHECKING:
    from torch import nn

TEST_ATTACKS = ("clean", "pgd-10-1", "autoattack")
"""Default attacks on the test split after training."""

AUTOATTACK_SECONDS = 90.0
"""Default time budget of AutoAttack after training; it runs on as many test images as fit."""

MODEL, DATA, METHOD, RECIPE, TEST, MACHINE = "Model", "Data", "Method and threat", "Recipe", "Test", "Machine"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of one argument beside its name, type and default.

    Attributes:
        help: noun phrase; the docstring of `train` and `--help` begin with it.
        more: continuation of the help for the command line alone.
        unset: meaning of None.
        group: heading in `--help`; empty for the essentials.
        parse: type on the command line; `list` takes several names, `dict` several NAME=VALUE.
        flag: long option, and the key in YAML, where it differs from the argument's name.
        short: one-letter option.
        resume: whether a resumed run, or a resumed comparison, must repeat the value.
        shared: whether all runs of a comparison have it in common.
        recorded: whether the manifest keeps it; what belongs to one call alone is not kept.
    """

    name: str = ""
    default: Any = None
    help: str
    more: str = ""
    unset: str = ""
    group: str = ""
    parse: type = str
    flag: str = ""
    short: str = ""
    resume: Literal["same", "same in a comparison", "free"] = "same"
    shared: bool = True
    recorded: bool = True

    @property
    def option(self) -> str:
        """The long option without its dashes: `batch-size`."""
        return self.flag or self.name.replace("_", "-")


def setting(default: Any, help: str, group: str = "", parse: type = str, **about: Any) -> Any:
    """Declares one setting, as a field of a dataclass; see `Setting` for the arguments."""
    about = {"help": help, "group": group, "parse": parse, **about}
    return dataclasses.field(default=default, metadata={"setting": about})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The arguments of one call of `train`."""

    # the essentials
    model: str | nn.Module = setting("resnet18", "name of a timm model")
    method: str = setting("sat", "training method", more="; `timm-robust methods` lists them", shared=False)
    data: Any = setting(
        "digits",
        "dataset: digits (embedded), a folder train/CLASS/* with val|test/CLASS/*, an .npz file, or a timm dataset "
        "name",
    )
    output: str | Path | None = setting(
        None,
        "folder of the run",
        parse=Path,
        unset="runs/MODEL-METHOD-DATA, numbered if taken",
        shared=False,
        recorded=False,
    )

    # method and threat
    method_args: Mapping[str, Any] | None = setting(
        None,
        "options of the method, such as beta=5",
        METHOD,
        dict,
        more="; those of a modifier with its name: awp.gamma=0.01",
        flag="option",
        short="o",
        shared=False,
    )
    modifiers: Sequence[str] | Mapping[str, Mapping[str, Any] | None] = setting(
        (),
        "modifiers to apply, such as awp or swa",
        METHOD,
        list,
        more="; `timm-robust modifiers` lists them",
        flag="modifier",
        shared=False,
    )
    eps: str | float | None = setting(
        None,
        "radius of the perturbation on the [0, 1] pixel scale, such as 8/255",
        METHOD,
        unset="8/255 up to 64 pixels, 4/255 above; in L2 0.5 and 3",
    )
    norm: str = setting("Linf", "norm of the perturbation: Linf or L2", METHOD)

    # recipe
    recipe: str | None = setting(
        None,
        "named training settings",
        RECIPE,
        more="; `timm-robust recipes` lists them",
        unset="chosen by dataset and image size",
    )
    epochs: int | None = setting(None, "passes over the training set", RECIPE, int, unset="the recipe's")
    batch_size: int | None = setting(None, "images per step and process", RECIPE, int, unset="the recipe's")
    lr: float | None = setting(None, "peak learning rate", RECIPE, float, unset="the recipe's")
    recipe_args: Mapping[str, Any] | None = setting(
        None, "any other recipe setting, such as ema=0.999 clip_grad=1", RECIPE, dict, flag="set"
    )

    # model
    model_kwargs: Mapping[str, Any] | None = setting(
        None, "arguments of `timm.create_model`, such as layers=[1,1,1,1] drop_rate=0.1", MODEL, dict
    )
    pretrained: bool = setting(False, "start from timm's pretrained weights", MODEL, bool)
    activation: str | None = setting(
        None, "smooth activation to swap in, such as silu, or none", MODEL, unset="the method's", shared=False
    )
    stem: str = setting(
        "auto", "stem: auto keeps the resolution of images up to 64 pixels, none leaves the model unchanged", MODEL
    )

    # data
    data_dir: str | None = setting(None, "root folder of timm datasets", DATA, resume="free")
    download: bool = setting(False, "allow timm datasets to be downloaded", DATA, bool, resume="free")
    image_size: int | None = setting(None, "side of the images in pixels", DATA, int, unset="the data's")
    extra_data: Any = setting(
        None,
        "additional training images, such as generated ones: a folder CLASS/*, an .npz file with image and label, or a "
        "timm dataset name",
        DATA,
    )
    extra_share: float = setting(0.7, "share of extra images in each batch", DATA, float)

    # the test after training
    test_attacks: Sequence[str] = setting(
        TEST_ATTACKS,
        "attacks on the test split after training: clean, fgsm, pgd-K-R (K steps, R restarts), autoattack",
        TEST,
        list,
        more="; none skips the test",
        flag="test-attack",
        resume="free",
    )
    test_examples: int | None = setting(
        None,
        "number of test images",
        TEST,
        int,
        unset="all; for AutoAttack as many as fit its time",
        resume="same in a comparison",
    )
    autoattack_seconds: float = setting(
        AUTOATTACK_SECONDS, "time budget of AutoAttack, in seconds", TEST, float, resume="free"
    )

    # machine
    device: str | None = setting(
        None, "torch device; cpu stays off the GPU", MACHINE, unset="the best available", resume="free"
    )
    precision: str = setting("fp32", "precision of training: fp32, bf16 or fp16", MACHINE)
    channels_last: bool = setting(True, "channels-last memory layout", MACHINE, bool)
    compile: bool = setting(False, "compile the model with torch.compile", MACHINE, bool, resume="free", shared=False)
    workers: int | None = setting(
        None, "processes that decode large images", MACHINE, int, unset="one per core, at most 8", resume="free"
    )

    # the run
    seed: int = setting(0, "random seed", parse=int, shared=False)
    track: Sequence[str] = setting(
        (),
        "experiment trackers of Accelerate that receive each epoch's metrics, such as tensorboard",
        parse=list,
        resume="free",
        shared=False,
    )
    resume: bool = setting(
        False,
        "continue the run in the output folder",
        parse=bool,
        more="; its settings need not be repeated",
        shared=False,
        recorded=False,
    )
    quiet: bool = setting(False, "no progress output", parse=bool, short="q", shared=False, recorded=False)

    def recorded(self) -> dict[str, Any]:
        """The arguments that the manifest keeps."""
        return {name: getattr(self, name) for name, one in SETTINGS.items() if one.recorded}


SETTINGS: dict[str, Setting] = {
    field.name: Setting(name=field.name, default=field.default, **field.metadata["setting"])
    for field in dataclasses.fields(TrainSettings)
}
"""All settings by name, in the order of the signature of `train`."""

SHARED = [name for name, one in SETTINGS.items() if one.shared]
"""Arguments that all runs of a comparison have in common."""

DEFAULTS: dict[str, Any] = {name: as_plain(one.default) for name, one in SETTINGS.items() if one.recorded}
"""Plain values that stand for what a manifest of an earlier version does not mention."""

FREE_IN_A_RUN = {name for name, one in SETTINGS.items() if one.resume != "same"}
FREE_IN_A_COMPARISON = {name for name, one in SETTINGS.items() if one.resume == "free"}
"""Arguments that may differ when a run, or a comparison, is resumed: what is trained stays the same."""
