"""Accuracy of a checkpoint under attacks that were crafted on others. Torch-free at import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import load_eval_inputs
from timm_robust.api.records import about, write_record
from timm_robust.errors import UserError
from timm_robust.utils.files import require_place
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
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
    from timm_robust.runs.checkpoint import load as load_model

    require_place(json)
    settings = EvalSettings(batch_size, seed)
    inputs = load_eval_inputs(target, data, batch_size=batch_size, **load)
    _require_same_classes(inputs, sources)
    models = {str(source): load_model(source, device=inputs.device) for source in sources}
    with Display(quiet).measuring() as progress:
        found = run(inputs, models, attack, settings, progress=progress)
    write_record(json, {**about(inputs, seed), **found.to_dict()})
    return found


def _require_same_classes(inputs: EvalInputs, sources: Sequence[str | Path]) -> None:
    """Refuses a source whose classes have other names, or another order."""
    from timm_robust.runs.checkpoint import read_metadata

    wanted = inputs.metadata.get("data", {}).get("class_names")
    for source in sources:
        names = read_metadata(source).get("data", {}).get("class_names")
        if names and wanted and len(names) == len(wanted) and names != wanted:
            one, other = next(pair for pair in zip(names, wanted, strict=True) if pair[0] != pair[1])
            raise UserError(
                f"source {str(source)!r} has class {one!r} where the target has {other!r}: expected the same"
            )
