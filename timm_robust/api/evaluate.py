"""`evaluate`: a checkpoint, test images and attacks in, accuracies and a record out. Torch-free at import."""

from __future__ import annotations

from collections.abc import Sequence
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
    n_examples: int | None = None,
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
    """Measures a checkpoint on the test split of a data set, without loading any plugin.

    What is measured so far is kept beside the record, or in the checkpoint's folder where none is written, until all is
    done: the same call goes on after a kill, with the same verdicts as an uninterrupted run.

    Args:
        checkpoint: a run's folder (its best checkpoint), a checkpoint folder, a module in eval mode, or a network of
            RobustBench's zoo, as `zoo:NAME` or `zoo:cifar100/NAME`.
        data: as in `train`; by default what the checkpoint was trained on.
        attacks: `clean`, `fgsm`, `pgd-K-R` (K steps, R restarts), `apgd-ce`, `apgd-dlr`, `apgd-t`, `cw`, `cw-linf`,
            `autoattack`, `autoattack-plus`, `autoattack-rand`, or `torchattacks:NAME:key=value,...`.
        n_examples: the first so many test images; by default all.
        batch_size: images at once; AutoAttack's verdicts depend on it.
        seed: of every random draw.
        eps, norm: threat, L1 too; by default what the checkpoint was trained against.
        data_dir, download: for timm data sets, as in `train`.
        device: by default the best there is.
        json: file for the record.
        restart: begin anew, whatever an earlier call that was stopped has measured.
        fast: run AutoAttack in its fast mode, for development: verdicts agree with the reference within the noise of
            another seed, and no submission takes them. Started by `torchrun`, processes share its images.
        precision, compile: of the fast mode's crafting: "fp32" or "bf16", and torch.compile.
        random_outputs: the model's outputs are random on purpose; otherwise such a model is refused.
        robustbench: run `robustbench.benchmark` itself as well, on the same images, seed and batch size; it
            is the entry `robustbench`, whose verdicts are those of `autoattack` in the reference mode.
        quiet: no progress.

    Raises:
        UserError: no such checkpoint, data that does not fit it, unknown attacks, a model in train mode.
    """
    from timm_robust.evaluation.attack_spec import parse_attack
    from timm_robust.evaluation.evaluate import evaluate_model
    from timm_robust.evaluation.fast import FastMode
    from timm_robust.evaluation.preconditions import output_warnings
    from timm_robust.robustbench import benchmark_entry, require_board
    from timm_robust.robustbench.package import find_package
    from timm_robust.utils import distributed as processes

    for name in attacks:
        parse_attack(name)
    if not fast and (precision != "fp32" or compile):
        raise UserError("precision and compile are for the fast mode: pass fast as well, or leave them")
    if not fast and processes.count() > 1:
        raise UserError(f"{processes.count()} processes would all measure the same: only the fast mode shares images")
    mode = FastMode(precision, compile) if fast else None
    if robustbench:
        find_package()  # before hours are spent
        if processes.count() > 1:
            raise UserError("robustbench.benchmark runs in one process: leave it out, or start one")
    require_place(json)
    display = Display(quiet or processes.rank() > 0)
    with display.reading() as progress:
        subject = load_eval_inputs(
            checkpoint,
            data,
            n_examples=n_examples,
            eps=eps,
            norm=norm,
            data_dir=data_dir,
            download=download,
            device=device,
            progress=progress,
        )
    if robustbench:
        require_board(subject.model, subject.images, subject.threat)
    for warning in output_warnings(subject.model, subject.images):
        display.warn(warning)
    keep = _kept_progress(subject.name, json)
    if keep is not None and keep.exists() and not restart:
        display.say(f"going on with what {keep} keeps of an evaluation that was stopped")
    with display.measuring() as report:
        result = evaluate_model(
            subject.model,
            subject.images,
            subject.targets,
            subject.threat,
            attacks=list(attacks),
            batch_size=batch_size,
            seed=seed,
            checkpoint=subject.name,
            data=subject.data,
            fast=mode,
            random_outputs=random_outputs,
            progress=report,
            keep=keep,
            restart=restart,
        )
    if robustbench:
        display.say("running robustbench.benchmark, which tells nothing until it is done")
        result.attacks["robustbench"] = benchmark_entry(
            subject.model, subject.images, subject.targets, subject.threat, batch_size=batch_size, seed=seed
        )
    written = json is None or processes.rank() > 0 or write_result(json, result.to_dict(), display)
    processes.wait()
    if keep is not None and written:
        keep.unlink(missing_ok=True)
    return result


def _kept_progress(checkpoint: str, json: str | Path | None) -> Path | None:
    """Where an evaluation keeps what it has measured: beside its record, else with the checkpoint if that can be."""
    from timm_robust.utils import distributed as processes

    suffix = f".unfinished-{processes.rank()}" if processes.rank() else ".unfinished"
    if json is not None:
        return Path(json).with_suffix(suffix)
    return kept_in(checkpoint, f"evaluation{suffix}")
