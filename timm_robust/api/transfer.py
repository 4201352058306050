"""Accuracy of a checkpoint under attacks that were crafted on others. Torch-free at import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import load_eval_inputs
from timm_robust.api.records import about, write_record
from timm_robust.utils.files import require_place
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from torch import nn

    from timm_robust.evaluation.inputs import EvalInputs
    from timm_robust.evaluation.transfer import Transfer


def transfer(
    target: str | Path,
    sources: Sequence[str | Path],
    data: Any = None,
    *,
    attack: str = "pgd-50-1",
    batch_size: int = 250,
    seed: int = 0,
    json: str | Path | None = None,
    quiet: bool = False,
    **load: Any,
) -> Transfer:
    """Accuracy of one checkpoint under attacks that were crafted on others; see `timm_robust.evaluation.transfer`.

    Data and threat default to the target's.

    Args:
        target: folder of the run or checkpoint to measure.
        sources: folders of the runs or checkpoints to craft on.
        data, batch_size, seed: as in `timm_robust.evaluate`.
        attack: `fgsm`, `pgd-K-R`, `cw-linf`, or one of torchattacks such as `torchattacks:MIFGSM:steps=50`.
        json: file of the record.
        quiet: no progress.
        load: examples, eps, norm, data_dir, download and device, as for `load_eval_inputs`.

    Raises:
        UserError: a mistake in any of these.
    """
    from timm_robust.evaluation.settings import EvalSettings
    from timm_robust.evaluation.transfer import transfer as run

    require_place(json)
    settings = EvalSettings(batch_size, seed)
    inputs = load_eval_inputs(target, data, batch_size=batch_size, **load)
    models = {str(source): _aligned(str(source), str(target), inputs) for source in sources}
    with Display(quiet).measuring() as progress:
        found = run(inputs, models, attack, settings, progress=progress)
    write_record(json, {**about(inputs, seed), **found.to_dict()})
    return found


def _aligned(source: str, target: str, inputs: EvalInputs) -> nn.Module:
    """The network of a source, its classes in the target's order; matched by name, see `match_classes`."""
    from timm_robust.data.class_order import match_classes
    from timm_robust.models.class_order import ClassAlignedModel
    from timm_robust.runs.checkpoint import load, read_metadata

    metadata = read_metadata(source)
    numbers = match_classes(
        (metadata.get("data") or {}).get("class_names"),
        (inputs.metadata.get("data") or {}).get("class_names"),
        owner=f"source {source!r}",
        data=f"target {target!r}",
        remedy="expected networks of the same classes",
    )
    model = load(source, device=inputs.device)
    same = numbers in (None, list(range(metadata["model"]["num_classes"])))
    return model if same else ClassAlignedModel(model, numbers).eval()
