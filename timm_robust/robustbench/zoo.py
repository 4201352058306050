"""RobustBench's model zoo: its list, and its networks as modules.

Names, architectures and links are those of the installed `robustbench`. Torch-free at import.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.errors import UserError, unknown
from timm_robust.robustbench.package import released
from timm_robust.robustbench.record import timm_name_for

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn


@dataclass(frozen=True)
class ZooEntry:
    """A network of the zoo.

    Attributes:
        name: model id.
        dataset, threat: name of the board.
        files: files of the weights, several for an ensemble.
        links: address of each file.
        here: whether all files exist.
    """

    name: str
    dataset: str
    threat: str
    files: tuple[str, ...]
    links: tuple[str, ...]
    here: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_zoo(dataset: str = "cifar10", threat: str = "Linf", folder: str | Path = "models") -> list[ZooEntry]:
    """Networks of a board, in RobustBench's order.

    Args:
        dataset: cifar10, cifar100 or imagenet.
        threat: Linf, L2 or corruptions.
        folder: folder of the weights, as FOLDER/DATASET/THREAT/NAME.pt.

    Raises:
        UserError: no such board, or RobustBench is not installed.
    """
    with released() as package:
        dataset, threat, models = _models(package, dataset, threat)
        return [_entry(name, dataset, threat, Path(folder), entry) for name, entry in models.items()]


def load_zoo(
    name: str,
    dataset: str = "cifar10",
    threat: str = "Linf",
    folder: str | Path = "models",
    *,
    download: bool = False,
) -> nn.Module:
    """A network of the zoo with its weights, in eval mode, images in [0, 1] to logits; `timm_robust.evaluate` takes it.

    Args:
        name: model id, as in `list_zoo`.
        dataset, threat, folder: as in `list_zoo`.
        download: allow missing weights to be downloaded.

    Raises:
        UserError: an unknown name; weights that are missing, cannot be downloaded or cannot be read.
    """
    with released() as package:
        dataset, threat, models = _models(package, dataset, threat)
        if name not in models:
            raise unknown(f"model on RobustBench's {dataset} {threat}", name, models)
        entry = _entry(name, dataset, threat, Path(folder), models[name])
        missing = [
            (file, link) for file, link in zip(entry.files, entry.links, strict=True) if not Path(file).is_file()
        ]
        if missing and not download:
            file, link = missing[0]
            raise UserError(f"the weights of {name} are not in {file}: fetch them from {link}, or allow the download")
        arguments = {"model_name": name, "model_dir": str(folder), "dataset": dataset, "threat_model": threat}
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return package.utils.load_model(**arguments).eval()
        except Exception as error:
            raise _explained(name, entry, [Path(file) for file, _ in missing], error) from error


def _explained(name: str, entry: ZooEntry, fetched: list[Path], error: Exception) -> UserError:
    """Explains why a network could not be loaded, and removes what a broken download left."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    absent = [file for file in fetched if not file.is_file()]
    if absent:
        return UserError(f"the weights of {name} could not be downloaded to {absent[0]} ({reason}): check the network")
    if "weights_only" in str(error) or "Weights only" in str(error):
        return UserError(
            f"{entry.files[0]} holds more than tensors, which torch reads only from sources that you trust: then set "
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
        )
    for file in map(Path, entry.files):
        whole = file.is_file() and zipfile.is_zipfile(file)
        if not whole:
            if file in fetched:
                file.unlink()
            return UserError(
                f"{file} cannot be read, its download may have been interrupted ({reason}): delete it and fetch it "
                f"again from {entry.links[entry.files.index(str(file))]}"
            )
    return UserError(f"{name} could not be loaded from {entry.files[0]} ({type(error).__name__}: {reason})")


def _models(package: ModuleType, dataset: str, threat: str) -> tuple[str, str, dict[str, Any]]:
    """Names in RobustBench's spelling, and its entries."""
    boards = {key.value: threats for key, threats in package.model_zoo.model_dicts.items()}
    spelt = {name.replace("_", ""): name for name in boards}
    found = spelt.get(dataset.lower().replace("-", "").replace("_", ""))
    if found is None:
        raise unknown("RobustBench data set", dataset, boards)
    threats = {key.value: models for key, models in boards[found].items()}
    by_lower = {name.lower(): name for name in threats}
    if threat.lower() not in by_lower:
        raise unknown(f"RobustBench threat model for {found}", threat, threats)
    return found, by_lower[threat.lower()], threats[by_lower[threat.lower()]]


def _entry(name: str, dataset: str, threat: str, folder: Path, entry: dict[str, Any]) -> ZooEntry:
    base = folder / dataset / threat / f"{name}.pt"
    drive = entry["gdrive_id"]
    if drive is None:
        files, links = _of_timm(timm_name_for(name, dataset, threat), base)
    else:
        parts = drive if isinstance(drive, list) else [drive]
        files = [f"{base}_m{number}.pt" for number in range(len(drive))] if isinstance(drive, list) else [str(base)]
        links = [f"https://drive.google.com/uc?id={part}" for part in parts]
    return ZooEntry(name, dataset, threat, tuple(files), tuple(links), all(Path(file).is_file() for file in files))


def _of_timm(name: str, base: Path) -> tuple[list[str], list[str]]:
    """File in torch's cache, and its address, of a network that RobustBench registers with timm."""
    import timm  # the zoo is listed without torch
    import torch

    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    url = getattr(cfg, "url", None) or ""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2] if url else base
    return [str(file)], [url or f"timm's {name}"]
