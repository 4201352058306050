"""Result files, written atomically. Paths are validated up front; a failed write never discards a finished result."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.errors import UserError

if TYPE_CHECKING:
    from timm_robust.utils.progress import Display


def require_place(path: str | Path | None, what: str = "record") -> None:
    """Refuses a file in a folder that does not exist, and a folder in place of a file.

    Args:
        path: None for no file.
        what: kind of file, for the error message.

    Raises:
        UserError: either of them.
    """
    if path is None:
        return
    if not Path(path).resolve().parent.is_dir():
        raise UserError(f"the folder of the {what} {str(path)!r} does not exist: make it first")
    if Path(path).is_dir():
        raise UserError(f"the {what} {str(path)!r} is a folder: expected a file name")


def kept_in(checkpoint: str, name: str) -> Path | None:
    """File `name` in a checkpoint's folder, for unfinished results; None if that is no folder or cannot be written."""
    folder = Path(checkpoint)
    return folder / name if folder.is_dir() and os.access(folder, os.W_OK) else None


def write_result(path: str | Path, content: dict[str, Any], display: Display) -> bool:
    """Writes a record as JSON; a full disk is a warning and returns False, so that the caller keeps its result."""
    try:
        write_json(Path(path), content)
    except OSError as error:
        display.warn(f"the record could not be written to {path} ({error})")
        return False
    return True


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a temporary file next to `path` and renames it: a kill or a full disk never leaves half a file there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o666 & ~_umask())  # mkstemp lets nobody else read, whatever the user's umask says
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomically(path, lambda file: file.write_text(text))


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")
