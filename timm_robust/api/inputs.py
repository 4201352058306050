"""Inputs of an evaluation, loaded: a network and the first test images. Torch-free at import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.errors import UserError
from timm_robust.threat import EVALUATION_NORMS, make_threat
from timm_robust.utils.allocator import keep_freed_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from timm_robust.data import DataBundle
    from timm_robust.evaluation.inputs import EvalInputs
    from timm_robust.utils.progress import Progress

ZOO = "zoo:"
"""Prefix of a network of RobustBench's zoo in place of a checkpoint."""


def load_eval_inputs(
    checkpoint: str | Path | nn.Module,
    data: Any = None,
    *,
    examples: int | None = None,
    eps: str | float | None = None,
    norm: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    device: str | None = None,
    random_outputs: bool = False,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> EvalInputs:
    """Loads a network and the first test images, and checks them; arguments as in `timm_robust.evaluate`.

    Args:
        progress: called with the images read.

    Raises:
        UserError: no such checkpoint, data that does not fit it, more images than there are, or anything that
            `EvalInputs` refuses.
    """
    from timm_robust.data import as_tensors
    from timm_robust.evaluation.inputs import EvalInputs
    from timm_robust.evaluation.preconditions import require_eval

    if examples is not None and examples < 1:
        raise UserError(f"examples is {examples}: expected at least 1")
    model, name, metadata = _network(checkpoint, norm, device, download)
    require_eval(model)  # before images are read
    bundle = _test_images(data, metadata, data_dir, download, progress)
    if examples is not None and examples > len(bundle.test):
        raise UserError(f"examples is {examples}, the test split of {bundle.name} has only {len(bundle.test)} images")
    trained = metadata.get("threat", {})
    if eps is None and (norm is None or norm.lower() == str(trained.get("norm")).lower()):
        eps = trained.get("eps_text")
    threat = make_threat(norm or trained.get("norm", "Linf"), eps, image_size=bundle.image_size, norms=EVALUATION_NORMS)
    images, targets = as_tensors(bundle.test, examples or len(bundle.test))
    targets = _numbered(targets, name, metadata.get("data", {}).get("class_names") or (), bundle)
    return EvalInputs(
        model,
        images,
        targets,
        threat,
        name=name,
        data=bundle.name,
        metadata=metadata,
        random_outputs=random_outputs,
        batch_size=batch_size,
    )


def _test_images(
    data: Any, metadata: dict[str, Any], data_dir: str | None, download: bool, progress: Progress | None
) -> DataBundle:
    """The test split; by default of the data that the checkpoint was trained on."""
    from timm_robust.data import load_data

    data = metadata.get("data", {}).get("name") if data is None else data
    if data is None:
        raise UserError("no data to measure on: pass data, such as 'digits' or a folder with test/CLASS/*")
    return load_data(
        data,
        image_size=metadata["model"]["image_size"] if metadata else None,
        seed=metadata.get("seed", 0),
        device="cpu",
        data_dir=data_dir,
        download=download,
        test_only=True,
        progress=progress,
    )


def _numbered(targets: Tensor, name: str, known: Sequence[str], bundle: DataBundle) -> Tensor:
    """Targets in the class numbers of the network, matched by name; see `match_classes`."""
    from timm_robust.data.class_order import match_classes

    numbers = match_classes(
        known,
        bundle.class_names,
        owner=name,
        data=f"data {bundle.name!r}",
        remedy="pass the data that it was trained on, or give the class folders the names that it was trained with",
    )
    return targets if numbers is None else targets.new_tensor(numbers)[targets]


def _network(
    checkpoint: str | Path | nn.Module, norm: str | None, device: str | None, download: bool
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Network, name, and content of model.json; empty for a module or a network of the zoo."""
    from timm_robust.runs.checkpoint import open_checkpoint
    from timm_robust.utils.distributed import own_device

    where = device or own_device()
    keep_freed_memory(where)
    if str(checkpoint).startswith(ZOO) and isinstance(checkpoint, str):
        from timm_robust.robustbench import load_zoo

        # zoo:NAME is of the board cifar10, zoo:cifar100/NAME of another
        dataset, _, name = checkpoint.removeprefix(ZOO).rpartition("/")
        return load_zoo(name, dataset or "cifar10", norm or "Linf", download=download).to(where), checkpoint, {}
    if isinstance(checkpoint, (str, Path)):
        opened = open_checkpoint(checkpoint, device=where)
        return opened.model, str(opened.folder), opened.metadata
    # a module stays where it is unless another device is asked for
    return checkpoint if device is None else checkpoint.to(device), type(checkpoint).__name__, {}


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
