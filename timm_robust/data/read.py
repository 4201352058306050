"""Data sets by name: `read_source` finds the reader for a name, a path or a Python object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from timm_robust.data.distilled import MANIFEST, from_distilled, read_manifest, source_of
from timm_robust.data.raw import RawData
from timm_robust.data.sources import digits, from_folder, from_npz, from_python
from timm_robust.data.timm_sets import TORCH_SETS, from_timm, is_timm_name
from timm_robust.errors import UserError, nearest


def read_source(
    data: Any,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    limit_bytes: int = 4 * 2**30,
    test_only: bool = False,
) -> RawData:
    """The raw splits of a data set.

    Args:
        data: name, path or Python object, as in `timm_robust.data.load_data`.
        data_dir, download: for timm data sets, as in `load_data`.
        limit_bytes: memory limit for data sets that can only be read from start to end.
        test_only: accept a folder without train/ too; all its splits are then the test split, which nobody must train
            on.

    Raises:
        UserError: nothing of that name, or not in the expected form.
    """
    if not isinstance(data, (str, os.PathLike)):
        return from_python(data)
    text = os.fspath(data)
    path = Path(text).expanduser()
    if text == "digits":
        return digits()
    if is_timm_name(text):
        return from_timm(text, data_dir, download, limit_bytes)
    if path.is_dir():
        if manifest := read_manifest(path):
            return _read_distilled(path, text, manifest, data_dir, download, limit_bytes)
        return from_folder(path, name=text, test_only=test_only)
    if path.is_file() and path.suffix.lower() == ".npz":
        return from_npz(path, name=text)
    if path.exists():
        raise UserError(f"data {text!r} is a file of another kind: expected a folder with train/ and test/, or a .npz")
    raise not_found("data", text)


def is_known(name: str) -> bool:
    """Whether it names a data set and not a path."""
    return name == "digits" or is_timm_name(name)


def not_found(what: str, name: str) -> UserError:
    """The error for a path or name that does not exist; `what` says what it was for ("data")."""
    beside = [str(Path(name).parent / entry) for entry in _entries(Path(name).expanduser().parent)]
    known = ["digits", *TORCH_SETS]
    close = [one for one in known if one.split("/")[-1] == name.lower()] or nearest(name, [*known, *beside], n=1)
    hint = f"did you mean {close[0]}?" if close else "expected digits, an image folder, a .npz file or a timm data set"
    return UserError(f"{what} {name!r} is neither an existing path nor a known data set: {hint}")


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))[:1000]
    except OSError:
        return []


def _read_distilled(
    root: Path,
    name: str,
    manifest: dict[str, Any],
    data_dir: str | os.PathLike[str] | None,
    download: bool,
    limit_bytes: int,
) -> RawData:
    """Distilled data, with validation and test images of the data set that it was distilled from.

    The manifest says where that is; `data_dir` takes precedence.
    """
    source, kept_in = source_of(root, name, manifest)
    try:
        real = read_source(source, data_dir=data_dir or kept_in, download=download, limit_bytes=limit_bytes)
    except UserError as error:
        raise UserError(
            f"validation and test images of {name!r} are those of {source!r} (entry 'source' in {MANIFEST}): {error}"
        ) from error
    return from_distilled(root, name, manifest, real)
