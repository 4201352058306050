"""Accuracy over the radius, of one or several checkpoints. Torch-free at import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import load_eval_inputs
from timm_robust.api.records import write_record
from timm_robust.errors import UserError
from timm_robust.utils.files import kept_in, require_place
from timm_robust.utils.progress import Display, Progress

if TYPE_CHECKING:
    from timm_robust.evaluation.curve import Curve
    from timm_robust.threat import Threat

PICTURES = (".svg", ".png", ".pdf")


def curve(
    checkpoints: Sequence[str | Path],
    data: Any = None,
    *,
    eps_values: Sequence[str | float] | None = None,
    attack: str = "pgd-10-1",
    output: str | Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    json: str | Path | None = None,
    restart: bool = False,
    quiet: bool = False,
    **load: Any,
) -> dict[str, Curve]:
    """Robust accuracy over the radius of one or several checkpoints, and a picture.

    Finished radii are kept in each checkpoint's folder until all are done, so an interrupted call resumes.

    Args:
        checkpoints: folders of runs or of checkpoints.
        data: data set, as in `timm_robust.evaluate`; default: the one that each checkpoint was trained on.
        eps_values: radii; default: 0, 1/4, 1/2, 3/4, 1, 1.5, 2, 3 and 4 times that of the first checkpoint.
        attack: `pgd-K-R`, `autoattack` or any other that `evaluate` knows.
        output: file of the picture (.svg, .png or .pdf); default: no picture.
        batch_size, seed: as in `timm_robust.evaluate`.
        json: file of the record.
        restart: ignore what an interrupted call has kept.
        quiet: no progress.
        load: examples, eps, norm, data_dir, download and device, as for `load_eval_inputs`.

    Returns:
        the curve of each checkpoint, by its name as given.

    Raises:
        UserError: a mistake in any of these.
    """
    from timm_robust.evaluation.attack_spec import parse_attack
    from timm_robust.evaluation.curve import accuracy_curve, grid
    from timm_robust.evaluation.settings import EvalSettings

    if not checkpoints:
        raise UserError("a curve needs a checkpoint: expected the folder of at least one run")
    parse_attack(attack)
    require_place(json)
    _require_picture(output)
    settings = EvalSettings(batch_size, seed, restart=restart)
    found: dict[str, Curve] = {}
    threats: list[Threat] = []
    unfinished: list[Path] = []
    drawn_on = ""
    with Display(quiet).measuring() as progress:
        for name in dict.fromkeys(map(str, checkpoints)):
            if threats:
                load = {**load, "norm": threats[0].norm}
            inputs = load_eval_inputs(name, data, batch_size=batch_size, **load)
            drawn_on = drawn_on or inputs.data
            _require_same_data(name, inputs.data, drawn_on)
            threats.append(inputs.threat)
            if keep := kept_in(inputs.name, "curve.unfinished"):
                unfinished.append(keep)
            radii = eps_values or grid(threats[0])
            found[name] = accuracy_curve(
                inputs, radii, attack, replace(settings, keep=keep), progress=_titled(name, progress)
            )
    written = write_record(json, {"data": drawn_on, "curves": {name: one.to_dict() for name, one in found.items()}})
    if output is not None:
        _draw(found, Path(output), {threat.eps for threat in threats})
    for file in unfinished if written else ():
        file.unlink(missing_ok=True)
    return found


def _require_picture(output: str | Path | None) -> None:
    require_place(output, "picture")
    if output is not None and Path(output).suffix not in PICTURES:
        raise UserError(
            f"picture {str(output)!r} has no known format: expected a name that ends in {', '.join(PICTURES)}"
        )


def _require_same_data(name: str, data: str, first: str) -> None:
    if data != first:
        raise UserError(
            f"{name} was trained on {data}, the first checkpoint on {first}: pass data, to measure all on the same "
            "images"
        )


def _titled(name: str, progress: Progress) -> Progress:
    """Progress with the checkpoint's name in front."""
    return lambda at, done, total, status="": progress(f"{name} {at}", done, total, status)


def _draw(found: Mapping[str, Curve], file: Path, trained: set[float]) -> None:
    """Draws the curves, with a mark at the radius of the training if it is the same for all."""
    from timm_robust.report.radii import draw_radii

    mark = next(iter(trained)) if len(trained) == 1 else None
    try:
        draw_radii(_short(found), [file], title="Accuracy over the radius", trained=mark)
    except OSError as error:
        raise UserError(f"the picture could not be written to {file} ({error})") from error


def _short(found: Mapping[str, Curve]) -> dict[str, Curve]:
    """Curves by name, without the leading folders that all names share."""
    parts = [Path(name).parts for name in found]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return {"/".join(one[shared:]): curve for one, curve in zip(parts, found.values(), strict=True)}
