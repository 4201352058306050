"""Checkpoints: weights as safetensors, everything else as JSON. Loading a model needs no pickle and no plugin.

last/  best/      model.safetensors   the inner network's weights, keys as in `timm.create_model(...)`
                  model.json          how to rebuild it: architecture, stem, activations, normalisation, threat, data
last/             state.pt            what resuming needs (tensors and plain values only)
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from timm_robust.errors import UserError
from timm_robust.models.factory import rebuild
from timm_robust.models.pixel_model import ModelConfig, PixelModel
from timm_robust.runs.layout import BEST, LAST, METADATA, STATE, WEIGHTS
from timm_robust.utils.files import write_atomically, write_json

FORMAT, STATE_FORMAT = 1, 2
"""Versions of model.json and of state.pt; older ones are read too."""


def save_model(folder: Path, model: PixelModel, metadata: dict[str, Any]) -> None:
    """Writes `model.safetensors` and `model.json`.

    Args:
        folder: checkpoint folder, made if missing.
        model: model whose inner network's weights are stored, in float32 as trained.
        metadata: further entries of `model.json` (threat, data, method, metrics, versions).
    """
    # clones, because safetensors refuses shared memory (tied weights) and other strides than contiguous
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.model.state_dict().items()}
    content = save(weights)
    write_atomically(folder / WEIGHTS, lambda file: file.write_bytes(content))
    write_json(folder / METADATA, {"format": FORMAT, "model": model.config.to_dict(), **metadata})


def rescue(model: PixelModel, metadata: dict[str, Any], output: Path, error: OSError) -> str:
    """Saves a model in the system's temporary folder, because `output` takes none; returns a sentence about it."""
    folder = Path(tempfile.mkdtemp(prefix="timm-robust-rescued-"))
    try:
        save_model(folder, model, metadata)
    except OSError:
        return f"the trained model could not be saved in {output} ({error}), nor in {folder}"
    return f"the trained model could not be saved in {output} ({error}): it is in {folder}"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state.pt` for resuming."""
    content = {"format": STATE_FORMAT, **state}
    write_atomically(folder / STATE, lambda file: torch.save(content, file))


def load_state(folder: Path) -> dict[str, Any]:
    """Reads `state.pt` without unpickling code; one of an older version is brought to today's layout.

    Raises:
        UserError: no such file, damaged, or written by a newer version.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"nothing to resume in {folder}: {STATE} is not there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read, it may be truncated: {_first_line(error)}") from error
    if state.get("format", 1) > STATE_FORMAT:
        raise _too_new(path, state["format"], STATE_FORMAT)
    return upgrade_state(state)


def upgrade_state(state: dict[str, Any]) -> dict[str, Any]:
    """A state in today's layout; the first one had no entry "format"."""
    if "format" in state:
        return state
    renamed = {"companion": "auxiliary_model", "returns": "rollbacks"}
    moved = {"watch": "catastrophic overfitting", "diagnosis": "robust overfitting"}
    kept = {renamed.get(name, name): value for name, value in state.items() if name not in moved}
    return {**kept, "monitors": {name: state[old] for old, name in moved.items()}}


def read_trained(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Trained weights of a run's last epoch, by name: the model's, and its auxiliary model's; empty where not stored.

    The model's are those that were trained, also where a modifier saves averaged ones.
    """
    state = load_state(run / LAST) if (run / LAST / STATE).is_file() else {}
    auxiliary = state.get("auxiliary_model") or {}
    # DistributedDataParallel prefixes the names
    return state.get("model", {}), {name.removeprefix("module."): value for name, value in auxiliary.items()}


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder for a run's folder (best/ before last/), a checkpoint folder or a weights file.

    Raises:
        UserError: there is none.
    """
    given = Path(path)
    if given.is_file():
        given = given.parent
    for folder in (given, given / BEST, given / LAST):
        if (folder / METADATA).is_file():
            return folder
    if not given.exists():
        raise UserError(f"checkpoint {str(path)!r} does not exist: expected a run's folder, or its best/ or last/")
    raise UserError(f"{str(path)!r} holds no checkpoint: expected {METADATA} and {WEIGHTS} in it, in best/ or in last/")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The content of `model.json`.

    Raises:
        UserError: no checkpoint, damaged, or written by a newer version.
    """
    file = find_checkpoint(path) / METADATA
    try:
        metadata = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {_first_line(error)}") from error
    if not isinstance(metadata, dict) or "model" not in metadata:
        raise UserError(f"{file} is no metadata of a timm-robust checkpoint: it has no entry 'model'")
    if metadata.get("format", 0) > FORMAT:
        raise _too_new(file, metadata["format"], FORMAT)
    return metadata


def load(path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "cpu") -> PixelModel:
    """A trained model, ready to use: in eval mode, on [0, 1] pixels, normalisation inside. No plugin is loaded.

    Args:
        path: run folder (its best checkpoint), checkpoint folder, or `model.safetensors`.
        model: network to load the weights into; only needed if the run trained your own module.
        device: device to put it on.

    Returns:
        module that takes float images [N, C, H, W] in [0, 1] and returns logits [N, K]; `.model` is the timm network
        inside.

    Raises:
        UserError: no checkpoint, truncated, or weights of another model.
    """
    return open_checkpoint(path, model=model, device=device).model


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        folder: folder of its files.
        metadata: content of model.json.
        model: see `load`.
    """

    folder: Path
    metadata: dict[str, Any]
    model: PixelModel


def open_checkpoint(
    path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "cpu"
) -> Checkpoint:
    """A trained model with its metadata; arguments and errors as in `load`."""
    folder = find_checkpoint(path)
    metadata = read_metadata(folder)
    built = rebuild(ModelConfig.from_dict(metadata["model"]), model)
    built.model.load_state_dict(read_weights(folder, built.model))
    return Checkpoint(folder, metadata, built.to(device).eval())


def read_weights(folder: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights in `folder`, checked against the keys and shapes that `model` expects."""
    file = folder / WEIGHTS
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise UserError(f"{folder} has no {WEIGHTS}: the checkpoint is incomplete") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read, it may be truncated: {_first_line(error)}") from error
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    shapes = [name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape]
    if missing or extra or shapes:
        what = (missing or extra or sorted(shapes))[0]
        how = "is missing" if missing else "is unknown to the model" if extra else "has another shape"
        raise UserError(f"{file} does not fit {type(model).__name__}: {what!r} {how}; it holds another model's weights")
    return weights


def _too_new(file: Path, found: int, known: int) -> UserError:
    return UserError(f"{file} has format {found}, this version reads up to {known}: upgrade timm-robust")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
