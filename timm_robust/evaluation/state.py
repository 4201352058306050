"""Unfinished evaluations on disk, so that the same command resumes after a kill.

One JSON file, replaced atomically, with a format number and the key of the evaluation: the hash of the weights and of
the images, and every setting that a verdict depends on. A file with another key is refused, and the error names the
first difference.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from timm_robust.errors import UserError
from timm_robust.evaluation.hashes import images_hash
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.utils.files import write_text

FORMAT = 3


@dataclass(frozen=True)
class Slot:
    """Place for the unfinished state of one attack.

    Attributes:
        content: plain values that an interrupted call left; empty for none.
        write: replaces them; None keeps nothing.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[dict[str, Any]], None] | None = None


NO_SLOT = Slot()


class EvaluationState:
    """Entries of finished attacks, and the state of the running one.

    Args:
        path: the file; None keeps nothing.
        key: plain values by name; all of them must equal those of the call that wrote the file.
        restart: ignore the file.

    Raises:
        UserError: the file cannot be read, or belongs to another evaluation.
    """

    def __init__(self, path: Path | None, key: dict[str, Any], *, restart: bool = False) -> None:
        self.path, self.key = path, key
        self.finished: dict[str, dict[str, Any]] = {}
        self.running: dict[str, dict[str, Any]] = {}
        self._warned = False
        if path is not None and path.exists() and not restart:
            self._read(path)

    def once(self, name: str, run: Callable[[], dict[str, Any]], *, shared: bool = False) -> dict[str, Any]:
        """The kept entry of an attack, else what `run` returns, which is then kept.

        Args:
            name: of the attack.
            run: makes the entry.
            shared: several processes make it together. Then only the running state is kept: each process has a file of
                its own, and one that took the entry from there would leave the others waiting for it.
        """
        if shared:
            return run()
        if name not in self.finished:
            self.finished[name] = run()
            self.running.pop(name, None)
            self._write()
        return self.finished[name]

    def slot(self, name: str) -> Slot:
        """Place for the unfinished state of attack `name`."""
        return Slot(self.running.get(name, {}), partial(self._keep, name) if self.path else None)

    def _keep(self, name: str, state: dict[str, Any]) -> None:
        self.running[name] = state
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
        except OSError as error:  # a full disk must not end the evaluation
            if not self._warned:
                warnings.warn(f"progress cannot be kept in {self.path} ({error}): a kill would lose it", stacklevel=2)
            self._warned = True


def inputs_key(inputs: EvalInputs, settings: EvalSettings) -> dict[str, Any]:
    """Plain values that the verdicts of any attack depend on."""
    return {
        "checkpoint": inputs.weights,
        "data": images_hash(inputs.images, inputs.targets),
        "n_examples": len(inputs),
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "device": inputs.device.type,
        "torch": torch.__version__,
    }
