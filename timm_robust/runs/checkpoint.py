"""Checkpoints: weights as safetensors, everything else as JSON; no pickle is needed to load a model, and no plugin.

last/  best/      model.safetensors   the inner network's weights, keys as in `timm.create_model(...)`
                  model.json          how to rebuild it: architecture, stem, activations, normalisation, threat, data
last/             state.pt            what resuming needs (tensors and plain values only)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from timm_robust.errors import UserError
from timm_robust.models.factory import rebuild
from timm_robust.models.pixel_model import ModelConfig, PixelModel
from timm_robust.utils.files import write_atomically, write_json

FORMAT = 1
WEIGHTS, METADATA, STATE = "model.safetensors", "model.json", "state.pt"


def save_model(folder: Path, model: PixelModel, metadata: dict[str, Any]) -> None:
    """Writes `model.safetensors` and `model.json`.

    Args:
        folder: made if it is not there.
        model: its inner network's weights are stored, in float32 as trained.
        metadata: what else `model.json` says (threat, data, method, metrics, versions).
    """
    # clones, because safetensors refuses shared memory (tied weights) and other strides than contiguous
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.model.state_dict().items()}
    content = save(weights)
    write_atomically(folder / WEIGHTS, lambda file: file.write_bytes(content))
    write_json(folder / METADATA, {"format": FORMAT, "model": model.config.to_dict(), **metadata})


def rescue(model: PixelModel, metadata: dict[str, Any], output: Path, error: OSError) -> str:
    """Saves a model that could not be saved in `output` into the system's temporary folder; returns what to tell."""
    folder = Path(tempfile.mkdtemp(prefix="timm-robust-rescued-"))
    try:
        save_model(folder, model, metadata)
    except OSError:
        return f"the trained model could not be saved in {output} ({error}), nor in {folder}"
    return f"the trained model could not be saved in {output} ({error}): it is in {folder}"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state.pt` for resuming."""
    write_atomically(folder / STATE, lambda file: torch.save(state, file))


def load_state(folder: Path) -> dict[str, Any]:
    """Reads `state.pt` without unpickling code.

    Raises:
        UserError: no such file, or damaged.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"nothing to resume in {folder}: {STATE} is not there")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read, it may be truncated: {_first_line(error)}") from error


def read_trained(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Trained weights of a run's last epoch, by name: the model's, and its auxiliary model's; empty where not stored.

    The model's are those that were trained, also where a modifier saves averaged ones.
    """
    state = load_state(run / "last") if (run / "last" / STATE).is_file() else {}
    auxiliary = state.get("companion") or {}
    # DistributedDataParallel prefixes the names
    return state.get("model", {}), {name.removeprefix("module."): value for name, value in auxiliary.items()}


def find_checkpoint(path: str | Path) -> Path:
    """The folder that holds the model for a run folder (best before last), a checkpoint folder or a weights file.

    Raises:
        UserError: there is none.
    """
    given = Path(path)
    if given.is_file():
        given = given.parent
    for folder in (given, given / "best", given / "last"):
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
        raise UserError(f"{file} is no model card of timm-robust: it has no entry 'model'")
    if metadata.get("format", 0) > FORMAT:
        raise UserError(
            f"{file} has format {metadata['format']}, this version reads up to {FORMAT}: upgrade timm-robust"
        )
    return metadata


def load(path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "cpu") -> PixelModel:
    """A trained model, ready to use: in eval mode, on [0, 1] pixels, normalisation inside. No plugin is loaded.

    Args:
        path: a run's folder (its best checkpoint), a checkpoint folder, or a `model.safetensors`.
        model: the network to fill, needed only where the run trained a module of the user's own.
        device: where to put it.

    Returns:
        a module that takes float images [N, C, H, W] in [0, 1] and returns logits [N, K]; `.model` is the bare timm
        network.

    Raises:
        UserError: no checkpoint, truncated, or weights of another model.
    """
    folder = find_checkpoint(path)
    record = ModelConfig.from_dict(read_metadata(folder)["model"])
    built = rebuild(record, model)
    built.model.load_state_dict(read_weights(folder, built.model))
    return built.to(device).eval()


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
