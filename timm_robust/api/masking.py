"""Signs of masked gradients in a checkpoint. Torch-free at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import load_eval_inputs
from timm_robust.api.records import about, write_record
from timm_robust.errors import UserError
from timm_robust.utils.files import require_place
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from timm_robust.evaluation.masking import Check


def masking(
    checkpoint: str | Path,
    data: Any = None,
    *,
    draws: int = 100,
    batch_size: int = 250,
    seed: int = 0,
    json: str | Path | None = None,
    quiet: bool = False,
    **load: Any,
) -> list[Check]:
    """Looks for masked gradients; see `timm_robust.evaluation.masking`.

    Args:
        checkpoint, data, batch_size, seed: as in `timm_robust.evaluate`.
        draws: number of random perturbations of each image.
        json: file of the record.
        quiet: no progress.
        load: examples, eps, norm, data_dir, download and device, as for `load_eval_inputs`.

    Raises:
        UserError: a mistake in any of these.
    """
    from timm_robust.evaluation.masking import check_masking
    from timm_robust.evaluation.settings import EvalSettings

    require_place(json)
    if draws < 1:
        raise UserError(f"draws is {draws}: expected at least 1")
    settings = EvalSettings(batch_size, seed)
    inputs = load_eval_inputs(checkpoint, data, batch_size=batch_size, **load)
    with Display(quiet).measuring() as progress:
        checks = check_masking(inputs, draws=draws, settings=settings, progress=progress)
    write_record(json, {**about(inputs, seed), "draws": draws, "checks": [one.to_dict() for one in checks]})
    return checks
