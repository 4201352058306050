"""Import of the released `robustbench` package (1.1.1), unmodified.

It imports `autoattack`, which is on no package index, and `pkg_resources`, which setuptools has dropped; some of its
files use timm's old module names; and the wheel of torchattacks carries an older copy of it under the same name. This
module works around all of that; its stand-ins are in `sys.modules` only while robustbench is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from timm_robust.errors import UserError
from timm_robust.robustbench.stand_in import stand_in

INSTALL = (
    "pip install --no-deps robustbench==1.1.1 gdown==5.1.0 geotorch torchdiffeq, then pip install pandas pyyaml Jinja2 "
    "beautifulsoup4 (without --no-deps it brings timm back to 1.0.9)"
)

OLD_TIMM_NAMES = {
    "timm.models.registry": "timm.models",
    "timm.models.helpers": "timm.models",
    "timm.models.layers": "timm.layers",
}
"""Modules of timm that robustbench imports, and their names since timm 0.9."""


def find_package() -> Path:
    """Folder of the released `robustbench`; imports nothing.

    Raises:
        UserError: it is not installed, or only the older copy that torchattacks carries.
    """
    spec = importlib.util.find_spec("robustbench")
    if spec is None or spec.origin is None:
        raise UserError(f"RobustBench is not installed: {INSTALL}")
    folder = Path(spec.origin).parent
    enums = folder / "model_zoo" / "enums.py"
    # the copy is of 2021: no list of ImageNet images, no 3D corruptions
    if not (folder / "helper_files").is_dir() or "corruptions_3d" not in (enums.read_text() if enums.is_file() else ""):
        raise UserError(
            f"{folder} is the old copy of RobustBench that torchattacks carries, not RobustBench: install it over that "
            f"copy with {INSTALL}"
        )
    return folder


@contextlib.contextmanager
def released() -> Iterator[ModuleType]:
    """`with released() as robustbench:` imports the released package; `robustbench.eval` and the rest are loaded.

    Once imported it stays importable by its own name; the stand-ins for what it lacks are removed at the end.

    Raises:
        UserError: it is not there (see `find_package`), or something that it needs is not.
    """
    find_package()
    before = set(sys.modules)
    with _stand_ins():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about timm's old names
                package = importlib.import_module("robustbench")
                for name in ("eval", "utils", "model_zoo"):
                    importlib.import_module(f"robustbench.{name}")
        except ImportError as error:
            for name in [
                name for name in sys.modules if name.partition(".")[0] == "robustbench" and name not in before
            ]:
                del sys.modules[name]  # half of it would make the next import fail in another way
            raise UserError(f"RobustBench cannot be imported ({error}): {INSTALL}") from error
        yield package


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Puts modules that robustbench imports and that are not installed into `sys.modules`, for as long as it lasts."""
    added: dict[str, ModuleType] = {}
    if "robustbench.eval" not in sys.modules:  # it keeps its own references to what it imported
        for name, make in {"pkg_resources": _pkg_resources, "autoattack": stand_in}.items():
            if not _importable(name):
                added |= make()
        for old, new in OLD_TIMM_NAMES.items():
            if not _importable(old):
                added[old] = importlib.import_module(new)
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _importable(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _pkg_resources() -> dict[str, ModuleType]:
    """The one function of it that robustbench calls: the path of a file beside a module."""
    module = ModuleType("pkg_resources")

    def resource_filename(package: str, name: str) -> str:
        return str(Path(str(sys.modules[package].__file__)).parent / name)

    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return {"pkg_resources": module}
