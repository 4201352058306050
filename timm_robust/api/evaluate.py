"""Evaluation of a checkpoint on test images under attacks. Torch-free at import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.inputs import load_eval_inputs
from timm_robust.errors import UserError
from timm_robust.utils.files import kept_in, require_place, write_result
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from torch import nn

    from timm_robust.evaluation.evaluate import Evaluation


def evaluate(
    checkpoint: str | Path | nn.Module,
    data: Any = None,
    *,
    attacks: Sequence[str] = ("clean", "pgd-50-10"),
    examples: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    eps: str | float | None = None,
    norm: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    device: str | None = None,
    json: str | Path | None = None,
    restart: bool = False,
    fast: bool = False,
    precision: str = "fp32",
    compile: bool = False,
    random_outputs: bool = False,
    robustbench: bool = False,
    quiet: bool = False,
) -> Evaluation:
    """Accuracy of a checkpoint on the test split of a data set, clean and under attacks; no plugin is loaded.

    Unfinished results are kept next to the JSON file (or in the checkpoint folder, if no file is asked for), so an
    interrupted call resumes, with the same verdicts as an uninterrupted one.

    Args:
        checkpoint: folder of a run (its best checkpoint) or of a checkpoint, a module in eval mode, or a network of
            RobustBench's zoo, as `zoo:NAME` or `zoo:cifar100/NAME`.
        data: data set, as in `train`; default: the one that the checkpoint was trained on.
        attacks: names: `clean`, `fgsm`, `pgd-K-R` (K steps, R restarts), `apgd-ce`, `apgd-dlr`, `apgd-t`, `cw`,
            `cw-linf`, `autoattack`, `autoattack-plus`, `autoattack-rand`, or `torchattacks:NAME:key=value,...`.
        examples: number of test images, from the first; default: all.
        batch_size: images per forward pass; AutoAttack's verdicts depend on it.
        seed: random seed of the attacks.
        eps, norm: threat, L1 too; default: the one that the checkpoint was trained against.
        data_dir, download: for timm data sets, as in `train`.
        device: torch device; default: a GPU if there is one.
        json: file of the record.
        restart: ignore what an interrupted call has kept.
        fast: run AutoAttack in its fast mode, for development: verdicts agree with the reference within the noise of
            another seed, and no submission takes them. Started by `torchrun`, processes share its images.
        precision, compile: of the fast mode's crafting: "fp32" or "bf16", and torch.compile.
        random_outputs: accept a model whose outputs are random; otherwise it is refused.
        robustbench: run `robustbench.benchmark` itself as well, on the same images, seed and batch size; it
            is the entry `robustbench`, whose verdicts are those of `autoattack` in the reference mode.
        quiet: no progress.

    Raises:
        UserError: no such checkpoint, data that does not fit it, unknown attacks, a model in train mode.
    """
    from timm_robust.evaluation.evaluate import evaluate_model
    from timm_robust.evaluation.settings import EvalSettings, FastMode
    from timm_robust.robustbench import benchmark_entry, require_board
    from timm_robust.utils import distributed

    _check(attacks, fast, precision, compile, robustbench)
    require_place(json)
    settings = EvalSettings(batch_size, seed, fast=FastMode(precision, compile) if fast else None, restart=restart)
    display = Display(quiet or distributed.rank() > 0)
    with display.reading() as progress:
        inputs = load_eval_inputs(
            checkpoint,
            data,
            examples=examples,
            eps=eps,
            norm=norm,
            data_dir=data_dir,
            download=download,
            device=device,
            random_outputs=random_outputs,
            batch_size=batch_size,
            progress=progress,
        )
    if robustbench:
        require_board(inputs)
    for warning in inputs.warnings:
        display.warn(warning)
    keep = _unfinished(inputs.name, json)
    if keep is not None and keep.exists() and not restart:
        display.say(f"resuming the unfinished evaluation kept in {keep}")
    with display.measuring() as progress:
        result = evaluate_model(inputs, attacks, replace(settings, keep=keep), progress=progress)
    if robustbench:
        display.say("running robustbench.benchmark, which shows no progress")
        result.attacks["robustbench"] = benchmark_entry(inputs, settings)
    written = json is None or distributed.rank() > 0 or write_result(json, result.to_dict(), display)
    distributed.barrier()
    if keep is not None and written:
        keep.unlink(missing_ok=True)
    return result


def _check(attacks: Sequence[str], fast: bool, precision: str, compile: bool, robustbench: bool) -> None:
    """Refuses, before anything is loaded, settings that do not go together."""
    from timm_robust.evaluation.attack_spec import parse_attack
    from timm_robust.robustbench.package import find_package
    from timm_robust.utils import distributed

    for name in attacks:
        parse_attack(name)
    several = distributed.world_size()
    if not fast and (precision != "fp32" or compile):
        raise UserError("precision and compile are for the fast mode: pass fast as well, or leave them")
    if not fast and several > 1:
        raise UserError(f"{several} processes would all measure the same: only the fast mode shares images")
    if robustbench:
        find_package()
        if several > 1:
            raise UserError("robustbench.benchmark runs in one process: leave it out, or start one")


def _unfinished(checkpoint: str, json: str | Path | None) -> Path | None:
    """File of unfinished results: next to the record, else in the checkpoint folder if it can be written."""
    from timm_robust.utils import distributed

    suffix = f".unfinished-{distributed.rank()}" if distributed.rank() else ".unfinished"
    if json is not None:
        return Path(json).with_suffix(suffix)
    return kept_in(checkpoint, f"evaluation{suffix}")
