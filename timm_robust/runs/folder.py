"""Folder of a run: ownership, and the manifest that makes the run repeatable and resumable. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_robust.errors import UserError
from timm_robust.runs.layout import MANIFEST
from timm_robust.utils.files import write_text

RUN, DISTILLATION = "run", "distillation"
"""Kinds of folders with a manifest, by its entry `kind`; that of a run has none."""


def config_hash(resolved: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal for equal settings."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunFolder:
    """A folder owned by one run or one distillation.

    Attributes:
        path: the folder.
        asked: arguments of `train` or `distill` as plain values; a resume with others is refused.
        kind: RUN or DISTILLATION.
    """

    path: Path
    asked: dict[str, Any]
    kind: str = RUN

    @classmethod
    def open(
        cls,
        output: str | Path,
        resume: bool,
        asked: Mapping[str, Any],
        *,
        may_differ: Collection[str],
        defaults: Mapping[str, Any] | None = None,
        kind: str = RUN,
    ) -> RunFolder:
        """Makes the folder, or checks that it holds the run to resume.

        Args:
            output: path of the folder.
            resume: whether to continue the run in it.
            asked: arguments of `train` or `distill`.
            may_differ: names of arguments that a resumed run need not repeat.
            defaults: plain values of arguments that manifests of earlier versions do not have.
            kind: RUN or DISTILLATION.

        Raises:
            UserError: it holds another run, nothing to resume, or a run with other arguments, or it is not writable.
        """
        path, plain = Path(output), {name: as_plain(value) for name, value in asked.items()}
        if resume:
            before = {**(defaults or {}), **read_asked(path, kind)}
            require_same(before, plain, plain.keys() - set(may_differ), f"the {kind} in {path}")
        elif is_first_process():
            require_new(path, MANIFEST, kind)
        make_folder(path)
        return cls(path, plain, kind)

    def forget(self) -> None:
        """Removes the manifest of a run that never began, and its folder if nothing else is in it."""
        if not is_first_process():
            return
        (self.path / MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def write_manifest(self, resolved: Mapping[str, Any]) -> None:
        """Writes all that is needed to repeat the run; under a launcher only the first process writes.

        Raises:
            UserError: the folder is not writable.
        """
        if not is_first_process():
            return
        kind = {} if self.kind == RUN else {"kind": self.kind}
        content = {**kind, "command": sys.argv, "asked": self.asked, **resolved}
        try:
            write_text(self.path / MANIFEST, json.dumps(content, indent=2, default=str) + "\n")
        except OSError as error:
            raise UserError(f"cannot write into {self.path}: {error.strerror or error}") from error


def require_new(path: Path, record: str, what: str) -> None:
    """Refuses a folder that is not empty.

    Args:
        path: folder, which need not exist.
        record: name of the file that every `what` has.
        what: intended content ("run").

    Raises:
        UserError: the folder holds another `what`, or anything else.
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
        UserError: it cannot be made, or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write into {path}: choose another folder")


def as_plain(value: Any) -> Any:
    """A value as JSON returns it; objects that JSON does not know become the name of their type."""
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
    """Arguments that the run in `folder` was started with.

    Raises:
        UserError: no such run, or a damaged manifest.
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


def require_same(before: Mapping[str, Any], asked: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Refuses to resume with other arguments.

    Args:
        before: plain values that the run was started with.
        asked: plain values of this call.
        names: arguments that must be equal.
        what: owner of the arguments, for the message ("the run in runs/first").

    Raises:
        UserError: one of them differs.
    """
    for name in sorted(names):
        if before.get(name) != asked.get(name):
            raise UserError(
                f"{what} was started with {name}={before.get(name)!r}, not {asked.get(name)!r}: "
                "resume it as it was, or start a new one in another folder"
            )


def is_first_process() -> bool:
    """Whether this process makes and writes the folder; the others of a launcher find it there."""
    return os.environ.get("RANK", "0") == "0"


def free_folder(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
