"""The folder of a run: who may write into it, and the manifest that says how to repeat the run. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_robust.errors import UserError
from timm_robust.runs.layout import MANIFEST

RUN, DISTILLATION = "run", "distillation"
"""What a folder with a manifest holds, by its entry `kind`; runs have none."""

MAY_CHANGE = {
    "device",
    "compile",
    "track",
    "data_dir",
    "download",
    "test_attacks",
    "test_examples",
    "autoattack_seconds",
}
"""Arguments that may differ when a run is resumed: they do not change what is trained."""


def config_hash(resolved: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal for equal settings."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunFolder:
    """A folder that one run, or one distillation, owns.

    Attributes:
        path: the folder.
        asked: the arguments of `train` or `distill`, as plain values, kept to refuse a resume with others.
        kind: what is in it.
    """

    path: Path
    asked: dict[str, Any]
    kind: str = RUN

    @classmethod
    def open(cls, output: str | Path, resume: bool, asked: Mapping[str, Any], kind: str = RUN) -> RunFolder:
        """Makes the folder, or checks that the run in it is the one to resume.

        Raises:
            UserError: it holds another run, nothing to resume, other arguments than the run's, or it cannot be written.
        """
        path, plain = Path(output), {name: as_plain(value) for name, value in asked.items()}
        if resume:
            _require_same(path, plain, kind)
        elif is_first_process():
            require_new(path, MANIFEST, kind)
        make_folder(path)
        return cls(path, plain, kind)

    def forget(self) -> None:
        """Takes the manifest of a run back that never began, and the folder if nothing else is in it."""
        if not is_first_process():
            return
        (self.path / MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def write_manifest(self, resolved: Mapping[str, Any]) -> None:
        """Writes everything that repeating the run needs; under a launcher the first process does.

        Raises:
            UserError: it cannot be written.
        """
        if not is_first_process():
            return
        kind = {} if self.kind == RUN else {"kind": self.kind}
        content = {**kind, "command": sys.argv, "asked": self.asked, **resolved}
        temporary = self.path / f".{MANIFEST}"
        try:
            temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
            os.replace(temporary, self.path / MANIFEST)
        except OSError as error:
            raise UserError(f"cannot write into {self.path}: {error.strerror or error}") from error


def require_new(path: Path, record: str, what: str) -> None:
    """Refuses a folder that holds something already.

    Args:
        path: may be missing, or be empty.
        record: the file by which a `what` is known.
        what: what the folder should hold ("run").

    Raises:
        UserError: it holds another one, or anything else.
    """
    if (path / record).exists():
        found = f"holds another {what}: continue it with --resume, or"
    elif path.is_dir() and any(path.iterdir()):
        found = f"is not empty and holds no {what}:"
    else:
        return
    raise UserError(f"{path} {found} choose another folder such as {free_folder(path)}")


def make_folder(path: Path) -> None:
    """Makes a folder to write into.

    Raises:
        UserError: it cannot be made, or not be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write into {path}: choose another folder")


def as_plain(value: Any) -> Any:
    """A value as JSON gives it back; objects of the user's by their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): as_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(item, (bool, int, float, str)) for item in value):
        return list(value)
    return f"<{type(value).__name__}>" if not hasattr(value, "numerator") else str(value)


def read_asked(folder: Path, kind: str = RUN) -> dict[str, Any]:
    """The arguments that the run in `folder` was started with.

    Raises:
        UserError: there is no such thing, or its manifest is damaged.
    """
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_text())
        asked, found = dict(content["asked"]), content.get("kind", RUN)
    except FileNotFoundError:
        raise UserError(f"nothing to resume in {folder}: {MANIFEST} is not there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest} cannot be read: {error}") from error
    if found != kind:
        raise UserError(f"{folder} holds a {found} and no {kind}: resume it with the command that made it")
    return asked


def _require_same(folder: Path, asked: Mapping[str, Any], kind: str) -> None:
    before = read_asked(folder, kind)
    for name, value in asked.items():
        if name not in MAY_CHANGE and before.get(name) != value:
            raise UserError(
                f"the {kind} in {folder} was started with {name}={before.get(name)!r}, not {value!r}: "
                "resume it as it was, or start a new run in another folder"
            )


def is_first_process() -> bool:
    """Under a launcher only the first process decides about the folder; the others find it made."""
    return os.environ.get("RANK", "0") == "0"


def free_folder(path: Path) -> Path:
    """The first of `path-2`, `path-3`, ... that is not there."""
    number = 2
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate
