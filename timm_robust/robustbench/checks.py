"""Preconditions of a submission, checked before anything is written. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_robust.data.class_order import match_classes
from timm_robust.errors import UserError
from timm_robust.robustbench.record import Board

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Reads the record of an evaluation.

    Raises:
        UserError: no such file, or not such a record.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"the record {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict) or not {"attacks", "clean_accuracy", "threat", "n_examples"} <= content.keys():
        raise UserError(f"{str(path)!r} is no record of timm-robust evaluate --json: it has no attacks or accuracies")
    return content


def check_evaluation(evaluation: Mapping[str, Any], board: Board, draft: bool) -> None:
    """Refuses a record whose attack, mode, radius, norm or number of images is not the board's."""
    entry = evaluation["attacks"].get("autoattack")
    command = (
        f"timm-robust evaluate CHECKPOINT --attack autoattack --norm {board.threat} --eps {board.eps_text} --json FILE"
    )
    if entry is None:
        raise UserError(
            f"the record has no AutoAttack, only {', '.join(evaluation['attacks']) or 'clean'}: run {command}"
        )
    ran, version = str(entry.get("implementation", "")), entry.get("version", "standard")
    reference = ran.split(" ")[0] in ("autoattack", "pyautoattack") and entry.get("mode", "reference") == "reference"
    if not reference or entry.get("fast"):
        raise UserError(f"the record was not made in reference mode (it says {ran or 'nothing'!r}): run {command}")
    if version != "standard":
        raise UserError(f"the record is of AutoAttack {version!r}, the board is of 'standard': run {command}")
    norm, eps = evaluation["threat"]["norm"], evaluation["threat"]["eps"]
    if norm != board.threat or abs(eps - board.eps) > 1e-9:
        radius = evaluation["threat"].get("eps_text", eps)
        raise UserError(
            f"the record is of {norm} {radius}, the board {board.dataset} is of {board.threat} {board.eps_text}"
        )
    n = min(entry["n_examples"], evaluation["n_examples"])
    if not draft and (n != board.n_examples or entry["n_examples"] != evaluation["n_examples"]):
        raise UserError(
            f"the record is of {n} images, the board takes {board.n_examples}: evaluate on all of them, or pass --draft"
        )


def check_network(metadata: Mapping[str, Any], board: Board) -> None:
    """Refuses a network whose classes are not the board's."""
    classes, channels = metadata["model"]["num_classes"], metadata["model"]["in_chans"]
    if classes != board.num_classes or channels != 3:
        raise UserError(
            f"the network has {classes} classes and {channels} channels, {board.dataset} has {board.num_classes} and "
            "3: choose the board of the data it was trained on"
        )
    if board.dataset != "cifar10":
        return
    numbers = match_classes(
        metadata.get("data", {}).get("class_names"),
        CIFAR10_CLASSES,
        owner="the network",
        data="CIFAR-10",
        remedy="expected a network trained on CIFAR-10",
    )
    if numbers not in (None, list(range(len(CIFAR10_CLASSES)))):
        raise UserError(
            f"the network has CIFAR-10's classes in another order (airplane is its class {numbers[0]}), and a board "
            "takes its logits as they are: train on torch/cifar10, or on folders named after CIFAR-10's classes"
        )


def check_folder(folder: Path, own: str) -> None:
    """Refuses a folder that holds another model's bundle; `own` is DATASET/THREAT/ID.json."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: expected a folder for the bundle")
    others = [
        path for path in folder.glob("model_info/*/*/*.json") if not path.as_posix().endswith(f"model_info/{own}")
    ]
    if others:
        raise UserError(f"{folder} already holds the bundle of {others[0].stem}: choose another folder")
