"""Trained networks for methods that learn from some: the user's own, or trained first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from torch import nn

from timm_robust.checkpoint import load, read_card
from timm_robust.data import DataBundle
from timm_robust.errors import UserError
from timm_robust.job import Job
from timm_robust.manifest import MANIFEST, is_first_process
from timm_robust.plugin.options import Options
from timm_robust.plugin.spec import DefenseSpec


def trained_teachers(spec: DefenseSpec, options: Options, job: Job, train: Callable[..., Any]) -> dict[str, nn.Module]:
    """The teachers of a run, frozen and in eval mode.

    Args:
        spec: of the method; its `teachers` name the options, and the method that trains each.
        options: of the run; an option that is None has its teacher trained into the run's folder, under its name.
        job: the run.
        train: trains with the run's own arguments, but for what is passed.

    Returns:
        networks by option, images in [0, 1] -> logits.

    Raises:
        UserError: a folder without checkpoint, or a teacher of other classes or images.
    """
    for option in spec.teachers:
        if getattr(options, option) is not None:
            _require_alike(getattr(options, option), job.data)  # before another is trained for nothing
    found: dict[str, nn.Module] = {}
    for option, method in spec.teachers.items():
        own = None if job.model.record.architecture else copy.deepcopy(job.model.model)
        folder = getattr(options, option)
        if folder is None:
            folder = job.output / option
            if is_first_process():
                job.display.say(
                    f"method {spec.name} learns from a teacher: training it with method {method} first "
                    f"(-o {option}=FOLDER takes one that is there)"
                )
            train(
                **({} if own is None else {"model": own}),
                method=method,
                method_args=None,
                modifiers=(),
                test_attacks=(),
                output=folder,
                resume=(folder / MANIFEST).is_file(),
                workers=job.workers,
                quiet=job.display.quiet,
            )
            PartialState().wait_for_everyone()  # the first process writes
        teacher = load(folder, model=None if read_card(folder)["model"]["architecture"] else own)
        found[option] = teacher.requires_grad_(False)
    return found


def _require_alike(folder: str, data: DataBundle) -> None:
    """Refuses a teacher of other classes or images."""
    model = read_card(folder)["model"]
    for what, has, wanted in (
        ("classes", model["num_classes"], data.num_classes),
        ("pixels", model["image_size"], data.image_size),
    ):
        if has != wanted:
            raise UserError(f"teacher {str(folder)!r} was trained on {has} {what}, this run has {wanted}")
