"""More than one number: curves over the radius, masked gradients, transfer, corruptions, two models compared.

Each function does what the command of the same name does. Torch-free at import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import EvalInputs, best_device, load_eval_inputs
from timm_robust.api.paired import paired
from timm_robust.errors import UserError
from timm_robust.threat import Threat
from timm_robust.utils.allocator import keep_freed_memory
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.files import kept_in, require_place, write_result
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from torch import nn

    from timm_robust.evaluation.corruptions import Corruptions
    from timm_robust.evaluation.curve import Curve
    from timm_robust.evaluation.masking import Check
    from timm_robust.evaluation.transfer import Transfer

__all__ = ["corruptions", "curve", "load_eval_inputs", "masking", "paired", "transfer"]

PICTURES = (".svg", ".png", ".pdf")


def curve(
    checkpoints: Sequence[str | Path],
    data: Any = None,
    *,
    eps_values: Sequence[str | float] | None = None,
    attack: str = "pgd-10-1",
    out: str | Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    json: str | Path | None = None,
    restart: bool = False,
    quiet: bool = False,
    **where: Any,
) -> dict[str, Curve]:
    """Robust accuracy over the radius of one or several checkpoints, and a picture.

    The radii that are done are kept in each checkpoint's folder until all is done: after a kill the same call goes on.

    Args:
        checkpoints: folders of runs or of checkpoints.
        data: as in `timm_robust.evaluate`; by default what each was trained on.
        eps_values: radii; by default 0, 1/4, 1/2, 3/4, 1, 1.5, 2, 3 and 4 times the first checkpoint's.
        attack: `pgd-K-R`, `autoattack` or any other that `evaluate` knows.
        out: the picture (.svg, .png or .pdf); None draws none.
        batch_size, seed: as in `timm_robust.evaluate`.
        json: file for the record.
        restart: begin anew, whatever an earlier call that was stopped has measured.
        quiet: no progress.
        where: n_examples, eps, norm, data_dir, download, device, as for `load_eval_inputs`.

    Returns:
        by checkpoint, as given, its curve.

    Raises:
        UserError: a mistake in any of these.
    """
    from timm_robust.evaluation.attack_spec import parse_attack
    from timm_robust.evaluation.curve import accuracy_curve, grid
    from timm_robust.report.radii import draw_radii

    if not checkpoints:
        raise UserError("a curve needs a checkpoint: expected the folder of at least one run")
    parse_attack(attack)
    require_place(json)
    require_place(out, "picture")
    if out is not None and Path(out).suffix not in PICTURES:
        raise UserError(f"picture {str(out)!r} has no known format: expected a name that ends in {', '.join(PICTURES)}")
    found: dict[str, Curve] = {}
    threats: list[Threat] = []
    drawn_on = ""
    unfinished: list[Path] = []
    with Display(quiet).measuring() as tell:
        for checkpoint in dict.fromkeys(map(str, checkpoints)):
            if threats:
                where = {**where, "norm": threats[0].norm}
            subject = _sound(checkpoint, data, **where)
            if threats and subject.data != drawn_on:
                raise UserError(
                    f"{checkpoint} was trained on {subject.data}, the first checkpoint on {drawn_on}: pass data, to "
                    "measure all on the same images"
                )
            drawn_on = subject.data
            threats.append(subject.threat)
            if keep := kept_in(subject.name, "curve.unfinished"):
                unfinished.append(keep)
            found[checkpoint] = accuracy_curve(
                subject.model,
                subject.images,
                subject.targets,
                threats[0].norm,
                eps_values or grid(threats[0]),
                attack=attack,
                batch_size=batch_size,
                seed=seed,
                progress=lambda at, done, total, name=checkpoint: tell(f"{name} {at}", done, total),  # type: ignore[misc]
                keep=keep,
                restart=restart,
            )
    written = _record(json, {"data": drawn_on, "curves": {name: one.to_dict() for name, one in found.items()}})
    if out is not None:
        same = {threat.eps for threat in threats}
        try:
            draw_radii(
                _short(found),
                [Path(out)],
                title="Accuracy over the radius",
                trained=same.pop() if len(same) == 1 else None,
            )
        except OSError as error:
            raise UserError(f"the picture could not be written to {out} ({error})") from error
    for file in unfinished if written else ():
        file.unlink(missing_ok=True)
    return found


def masking(
    checkpoint: str | Path,
    data: Any = None,
    *,
    draws: int = 100,
    batch_size: int = 250,
    seed: int = 0,
    json: str | Path | None = None,
    quiet: bool = False,
    **where: Any,
) -> list[Check]:
    """Looks for masked gradients; see `timm_robust.evaluation.masking`. Arguments as for `curve`."""
    from timm_robust.evaluation.masking import check_masking

    require_place(json)
    if draws < 1:
        raise UserError(f"draws is {draws}: expected at least 1")
    subject = _sound(checkpoint, data, **where)
    with Display(quiet).measuring() as tell:
        checks = check_masking(
            subject.model,
            subject.images,
            subject.targets,
            subject.threat,
            draws=draws,
            batch_size=batch_size,
            seed=seed,
            progress=lambda what: tell(what, 0, 1),
        )
    _record(json, {**_about(subject, seed), "draws": draws, "checks": [one.to_dict() for one in checks]})
    return checks


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
    **where: Any,
) -> Transfer:
    """Accuracy of one checkpoint under attacks that were made on others; see `timm_robust.evaluation.transfer`.

    The data and the threat are the target's. Other arguments as for `curve`.
    """
    from timm_robust.data.class_order import match_classes
    from timm_robust.evaluation.transfer import transfer as run
    from timm_robust.models.class_order import ClassAlignedModel
    from timm_robust.runs.checkpoint import load, read_metadata

    require_place(json)
    subject = _sound(target, data, **where)
    device = next(subject.model.parameters()).device
    models: dict[str, nn.Module] = {}
    for source in sources:
        metadata = read_metadata(source)
        numbers = match_classes(
            (metadata.get("data") or {}).get("class_names"),
            (subject.metadata.get("data") or {}).get("class_names"),
            owner=f"source {str(source)!r}",
            data=f"target {str(target)!r}",
            remedy="expected networks of the same classes",
        )
        model = load(source, device=device)
        same = numbers in (None, list(range(metadata["model"]["num_classes"])))
        models[str(source)] = model if same else ClassAlignedModel(model, numbers).eval()
    with Display(quiet).measuring() as tell:
        found = run(
            subject.model,
            models,
            subject.images,
            subject.targets,
            subject.threat,
            attack=attack,
            batch_size=batch_size,
            seed=seed,
            progress=tell,
        )
    _record(json, {**_about(subject, seed), **found.to_dict()})
    return found


def corruptions(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    n_examples: int | None = None,
    only: Sequence[str] | None = None,
    batch_size: int = 250,
    device: str | None = None,
    json: str | Path | None = None,
    quiet: bool = False,
) -> Corruptions:
    """Accuracy of a checkpoint on common corruptions; see `timm_robust.evaluation.corruptions`.

    Args:
        checkpoint: a run's folder or a checkpoint folder.
        folder: CIFAR-10-C, CIFAR-100-C, ImageNet-C, or one in their format.
        n_examples: the first so many images of each severity; by default all.
        only: some of the 15 corruptions; by default all.
        batch_size, device, json, quiet: as for `curve`.
    """
    from timm_robust.evaluation.corruptions import CORRUPTIONS, corruption_accuracy
    from timm_robust.runs.checkpoint import find_checkpoint, load, read_metadata

    require_place(json)
    metadata = read_metadata(checkpoint)
    keep_freed_memory(device or best_device())
    model = load(checkpoint, device=device or best_device())
    with Display(quiet).measuring() as tell:
        found = corruption_accuracy(
            model,
            folder,
            class_names=metadata.get("data", {}).get("class_names"),
            image_size=metadata["model"]["image_size"],
            n_examples=n_examples,
            corruptions=list(only or CORRUPTIONS),
            batch_size=batch_size,
            progress=tell,
        )
    _record(json, {"checkpoint": str(find_checkpoint(checkpoint)), **found.to_dict()})
    return found


def _sound(checkpoint: str | Path, data: Any, **where: Any) -> EvalInputs:
    """The subject, if its logits are finite and the same twice."""
    from timm_robust.evaluation.preconditions import require_deterministic, require_finite

    subject = load_eval_inputs(checkpoint, data, **where)
    require_finite(subject.model, subject.images)
    require_deterministic(subject.model, subject.images)
    return subject


def _about(subject: EvalInputs, seed: int) -> dict[str, Any]:
    threat = subject.threat
    return {
        "checkpoint": subject.name,
        "data": subject.data,
        "n_examples": len(subject.images),
        "threat": {"norm": threat.norm, "eps": threat.eps, "eps_text": threat.eps_text},
        "seed": seed,
    }


def _record(path: str | Path | None, content: dict[str, Any]) -> bool:
    """Writes the record, if one is wanted; whether nothing went wrong."""
    return path is None or write_result(path, {**content, "versions": versions(), "hardware": hardware()}, Display())


def _short(found: dict[str, Curve]) -> dict[str, Curve]:
    """Names without the folders that all share."""
    parts = [Path(name).parts for name in found]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return {"/".join(one[shared:]): curve for one, curve in zip(parts, found.values(), strict=True)}
