"""Teachers of a run: trained networks that a method learns from, given or trained first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from timm_robust.data import DataBundle
from timm_robust.errors import UserError
from timm_robust.models.class_order import ClassAlignedModel, class_columns
from timm_robust.options import Options
from timm_robust.plugin.spec import DefenseSpec
from timm_robust.runs.checkpoint import load, read_metadata
from timm_robust.runs.folder import is_first_process
from timm_robust.runs.layout import MANIFEST
from timm_robust.training.config import TrainConfig


def trained_teachers(
    spec: DefenseSpec, options: Options, config: TrainConfig, train: Callable[..., Any]
) -> dict[str, nn.Module]:
    """The teachers of a run, frozen and in eval mode.

    Args:
        spec: spec of the method; its `teachers` name the options, and the method that trains each.
        options: options of the method; for one that is None, the teacher that came with the data is taken, else one is
            trained into the run's folder, under the option's name.
        config: configuration of the run.
        train: function that trains with the run's own arguments, except those passed.

    Returns:
        networks by option, images in [0, 1] -> logits of the run's classes.

    Raises:
        UserError: a folder without a checkpoint, or a teacher of other classes or images.
    """
    came = config.data.distilled.teachers if config.data.distilled else {}
    given = {option: getattr(options, option) or came.get(option) for option in spec.teachers}
    for path in given.values():
        if path is not None:
            _columns(path, config.data)  # before another is trained for nothing
    found: dict[str, nn.Module] = {}
    for option, method in spec.teachers.items():
        own = None if config.model.config.architecture else copy.deepcopy(config.model.model)
        folder = given[option]
        if folder is None:
            folder = config.output / option
            if is_first_process():
                config.display.say(
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
                workers=config.workers,
                quiet=config.display.quiet,
            )
            PartialState().wait_for_everyone()  # the first process writes
        teacher = load(folder, model=None if read_metadata(folder)["model"]["architecture"] else own)
        found[option] = ClassAlignedModel(teacher, _columns(folder, config.data)).requires_grad_(False).eval()
    return found


def _columns(folder: str | Path, data: DataBundle) -> list[int] | None:
    """Class order of a teacher, see `class_columns`; refuses one of other classes or images.

    The order of the observer that came with distilled data was checked on images when the data was made, and is in its
    manifest.
    """
    metadata, owner = read_metadata(folder), f"teacher {str(folder)!r}"
    model = metadata["model"]
    if model["image_size"] != data.image_size:
        raise UserError(f"{owner} was trained on {model['image_size']} pixels, this data has {data.image_size}")
    if data.distilled and folder in data.distilled.teachers.values():
        columns = data.distilled.observer_classes
        return None if columns == list(range(model["num_classes"])) else columns
    known = metadata.get("data", {}).get("class_names")
    return class_columns(known, data.class_names, model["num_classes"], owner=owner)
