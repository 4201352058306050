"""Format of the JSON record of a model on a RobustBench board, `model_info/DATASET/THREAT/ID.json`.

The rules are those of the 236 published records (robustbench/model_info, March 2025) and of the code that reads them
(robustbench.utils.ModelInfo, leaderboard/template.py). Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm_robust.errors import UserError, unknown
from timm_robust.threat import parse_eps


@dataclass(frozen=True)
class Board:
    """A leaderboard.

    Attributes:
        dataset: name in RobustBench's spelling, in paths and in the record.
        threat: "Linf" or "L2".
        eps_text: radius as records write it; `eps` is the same number, in units of the [0, 1] pixel range.
        n_examples: number of images that a result is measured on.
        num_classes: number of classes of the data set.
    """

    dataset: str
    threat: str
    eps_text: str
    n_examples: int
    num_classes: int

    @property
    def eps(self) -> float:
        return parse_eps(self.eps_text, self.threat)[0]

    def __str__(self) -> str:
        return f"{self.dataset} {self.threat} {self.eps_text}"


BOARDS = {
    (board.dataset, board.threat): board
    for board in (
        Board("cifar10", "Linf", "8/255", 10_000, 10),
        Board("cifar10", "L2", "0.5", 10_000, 10),
        Board("cifar100", "Linf", "8/255", 10_000, 100),
        Board("imagenet", "Linf", "4/255", 5_000, 1000),
    )
}
"""Boards of norm balls; those of common corruptions do not use AutoAttack."""

ID_RULE = "<Name><Year><FirstWordOfTitle>, then _ARCH if there are several, such as Wang2023Better_WRN-28-10"
_ID = re.compile(r"[A-Z][A-Za-z-]*\d{4}[A-Z][A-Za-z0-9-]*(_[A-Za-z0-9_-]+)?")

TEXT, NUMBER, YES_NO, COUNT = "text", "number as text", "true or false", "whole number"
FIELDS: dict[str, tuple[str, bool]] = {
    "link": (TEXT, False),
    "name": (TEXT, False),
    "authors": (TEXT, False),
    "additional_data": (YES_NO, False),
    "number_forward_passes": (COUNT, False),
    "dataset": (TEXT, False),
    "venue": (TEXT, False),
    "architecture": (TEXT, False),
    "eps": (TEXT, True),
    "clean_acc": (NUMBER, False),
    "reported": (NUMBER, True),
}
"""Required fields: kind, and whether they may be empty (`eps` on the corruption boards, `reported` anywhere)."""

OPTIONAL_FIELDS: dict[str, tuple[str, bool]] = {
    "autoattack_acc": (NUMBER, False),
    "external": (NUMBER, False),
    "unreliable": (YES_NO, False),
    "footnote": (TEXT, True),
    "corruptions_acc": (NUMBER, False),
    "corruptions_mce": (NUMBER, False),
    "corruptions_acc_3d": (NUMBER, False),
    "corruptions_mce_3d": (NUMBER, False),
}
"""Optional fields."""


def find_board(dataset: str, threat: str) -> Board:
    """The board of a data set and a threat model, in any spelling of capitals and hyphens.

    Raises:
        UserError: RobustBench has no such board.
    """
    plain = {re.sub(r"[^a-z0-9]", "", board.dataset): board.dataset for board in BOARDS.values()}
    found = plain.get(re.sub(r"[^a-z0-9]", "", dataset.lower()))
    if found is None:
        raise unknown("RobustBench data set", dataset, set(plain.values()))
    threats = {board.threat.lower(): board.threat for board in BOARDS.values() if board.dataset == found}
    if threat.lower() not in threats:
        raise unknown(f"RobustBench threat model for {found}", threat, threats.values())
    return BOARDS[found, threats[threat.lower()]]


def check_id(model_id: str) -> str:
    """The model id, if it follows RobustBench's rule (227 of the 236 published do).

    Raises:
        UserError: it does not.
    """
    if not _ID.fullmatch(model_id):
        raise UserError(f"model id {model_id!r}: RobustBench expects {ID_RULE}")
    return model_id


def timm_name_for(model_id: str, dataset: str, threat: str) -> str:
    """Name of the timm model that `robustbench.load_model(model_id, dataset, threat)` tries first."""
    return f"{model_id.lower().replace('-', '_')}_{dataset.lower()}_{threat.lower()}"


def percent(share: float) -> str:
    """A share in [0, 1] in the boards' format: percent with two decimals, without the sign."""
    return f"{100 * share:.2f}"


def problems(record: Mapping[str, Any], dataset: str, threat: str) -> list[str]:
    """Mistakes in a record, a sentence each.

    Args:
        record: content of the JSON file.
        dataset: folder that it is for, such as "cifar10".
        threat: folder that it is for: "Linf", "L2" or "corruptions".
    """
    found = []
    known = FIELDS | OPTIONAL_FIELDS
    needed = [*FIELDS, "corruptions_acc" if threat == "corruptions" else "autoattack_acc"]
    found += [f"{name} is missing" for name in needed if name not in record]
    found += [f"{name} is no field of RobustBench" for name in record if name not in known]
    for name, value in record.items():
        if name in known:
            kind, empty = known[name]
            found += _wrong_kind(name, value, kind, empty)
    if record.get("dataset") != dataset:
        found.append(f"dataset is {record.get('dataset')!r}, the folder says {dataset!r}")
    board = BOARDS.get((dataset, threat))
    if board and record.get("eps") != board.eps_text:
        found.append(f"eps is {record.get('eps')!r}, the board's is {board.eps_text!r}")
    return found


def _wrong_kind(name: str, value: Any, kind: str, empty: bool) -> list[str]:
    if value is None or value == "":
        return [] if empty else [f"{name} is empty: expected {kind}"]
    if kind == YES_NO:
        right = isinstance(value, bool)
    elif kind == COUNT:
        right = isinstance(value, int) and not isinstance(value, bool) and value > 0
    else:
        right = isinstance(value, str)
    if right and kind == NUMBER:
        right = re.fullmatch(r"\d{1,3}(\.\d+)?", value) is not None and float(value) <= 100
    return [] if right else [f"{name} is {value!r}: expected {kind}"]
