"""Paired comparison of two records of `evaluate --json`, image by image. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.errors import UserError

if TYPE_CHECKING:
    from timm_robust.evaluation.statistics import Paired

MUST_AGREE = ("data", "n_examples", "seed")
"""Keys whose values two records must share to be compared."""


def paired(record_a: str | Path, record_b: str | Path) -> dict[str, Paired]:
    """Compares two records of `evaluate --json` image by image, for each attack that both have.

    Args:
        record_a, record_b: files.

    Returns:
        comparison of A with B, by attack.

    Raises:
        UserError: not such records, or not of the same images, seed and threat.
    """
    from timm_robust.evaluation.statistics import paired as compare

    a, b = _read(record_a), _read(record_b)
    for name in MUST_AGREE:
        if a.get(name) != b.get(name):
            raise UserError(
                f"the records differ in {name}: {a.get(name)!r} in {record_a}, {b.get(name)!r} in {record_b}; "
                "expected the same images, measured in the same way"
            )
    threats = [f"{one['threat'].get('norm')} {one['threat'].get('eps_text')}" for one in (a, b)]
    if a["threat"].get("norm") != b["threat"].get("norm") or a["threat"].get("eps") != b["threat"].get("eps"):
        raise UserError(f"the records differ in threat: {threats[0]} in {record_a}, {threats[1]} in {record_b}")
    # an entry may lack verdicts, as that of RobustBench with the authors' package
    shared = [name for name in a["attacks"] if all(one["attacks"].get(name, {}).get("robust") for one in (a, b))]
    if not shared:
        raise UserError(
            f"the records share no attack: {', '.join(a['attacks']) or 'none'} in {record_a}, "
            f"{', '.join(b['attacks']) or 'none'} in {record_b}"
        )
    found = {}
    for name in shared:
        one, other = a["attacks"][name]["robust"], b["attacks"][name]["robust"]
        if len(one) != len(other):
            raise UserError(f"{name} was run on {len(one)} images in {record_a}, on {len(other)} in {record_b}")
        found[name] = compare(one, other)
    return found


def _read(path: str | Path) -> dict[str, Any]:
    try:
        record = json.loads(Path(path).read_text())
        usable = all("robust" in entry for entry in record["attacks"].values()) and isinstance(record["threat"], dict)
    except (OSError, ValueError) as error:
        raise UserError(f"record {str(path)!r} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise UserError(f"{str(path)!r} is no record with a verdict per image: expected a file of `evaluate --json`")
    return record
