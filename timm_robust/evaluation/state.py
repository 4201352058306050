"""What an evaluation has measured so far, on disk, so that the same command goes on after a kill.

One JSON file, replaced atomically, with a format number and the key of the evaluation: the hash of the weights and of
the images, and every setting that a verdict depends on. With another key it is refused, and what differs is said.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.errors import UserError
from timm_robust.utils.files import write_text

FORMAT = 2


class EvaluationState:
    """Finished measures, and where the running one is.

    Args:
        path: the file; None keeps nothing.
        key: plain values by name; all of them must be those of the run that wrote the file.
        restart: forget what is there.

    Raises:
        UserError: the file cannot be read, or is of another evaluation.
    """

    def __init__(self, path: Path | None, key: dict[str, Any], *, restart: bool = False) -> None:
        self.path, self.key = path, key
        self.finished: dict[str, dict[str, Any]] = {}
        self.running: dict[str, dict[str, Any]] = {}
        self._warned = False
        if path is not None and path.exists() and not restart:
            self._read(path)

    def once(self, name: str, measure: Callable[[], dict[str, Any]], *, shared: bool = False) -> dict[str, Any]:
        """The entry of a measure: what is kept, else what `measure` returns, which is then kept.

        Args:
            shared: several processes measure it together. Then only where it is is kept: each process has a file of its
                own, and one that took the entry from there would leave the others waiting for it.
        """
        if shared:
            return measure()
        if name not in self.finished:
            entry = measure()
            self.finished[name] = entry
            self.running.pop(name, None)
            self._write()
        return self.finished[name]

    def keep(self, name: str, progress: dict[str, Any]) -> None:
        """Notes where measure `name` is."""
        self.running[name] = progress
        self._write()

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            written, parts = content["format"], [content[name] for name in ("key", "finished", "running")]
            if not all(isinstance(part, dict) for part in parts):
                raise ValueError
            key, self.finished, self.running = parts
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the evaluation kept in {path} cannot be read ({type(error).__name__}): delete it or pass --restart"
            ) from error
        if written != FORMAT:
            raise UserError(
                f"the evaluation kept in {path} has format {written}, this version knows {FORMAT}: pass --restart"
            )
        for name, value in self.key.items():
            if key.get(name) != value:
                what = name.replace("_", " ")
                raise UserError(
                    f"{path} keeps an unfinished evaluation that differs in {what} ({key.get(name)}, now {value}): "
                    "run the command that began it, or pass --restart to drop it"
                )

    def _write(self) -> None:
        if self.path is None:
            return
        content = {"format": FORMAT, "key": self.key, "finished": self.finished, "running": self.running}
        try:
            write_text(self.path, json.dumps(content))
        except OSError as error:  # a full disk: go on measuring
            if not self._warned:
                warnings.warn(f"progress cannot be kept in {self.path} ({error}): a kill would lose it", stacklevel=2)
            self._warned = True


def subject_key(model: nn.Module, images: Tensor, targets: Tensor, batch_size: int, seed: int) -> dict[str, Any]:
    """What the verdicts of any measure depend on."""
    return {
        "checkpoint": weights_hash(model),
        "data": images_hash(images, targets),
        "n_examples": len(images),
        "batch_size": batch_size,
        "seed": seed,
        "device": next(model.parameters()).device.type,
        "torch": torch.__version__,
    }


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers by name, the first 16 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def images_hash(images: Tensor, targets: Tensor) -> str:
    """SHA-256 of pixels and labels, the first 16 hex digits."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for chunk in (*images.split(1000), targets):
        digest.update(_bytes(chunk))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
