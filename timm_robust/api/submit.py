"""A submission to RobustBench, evaluated first where no record is given. Torch-free at import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm_robust.errors import UserError
from timm_robust.robustbench.bundle import Bundle, Paper, check_submission, write_bundle
from timm_robust.robustbench.checks import read_evaluation
from timm_robust.robustbench.record import find_board


def submit(
    checkpoint: str | Path,
    output: str | Path = "submission",
    *,
    dataset: str = "cifar10",
    threat: str = "Linf",
    record: str | Path | None = None,
    data: Any = None,
    examples: int | None = None,
    seed: int = 0,
    model_id: str | None = None,
    paper: Paper | None = None,
    draft: bool = False,
    device: str | None = None,
    quiet: bool = False,
) -> Bundle:
    """Writes a submission: board record, weights, model file, text of the issue, evaluation.

    Args:
        checkpoint: folder of a run or of a checkpoint.
        output: folder of the submission.
        dataset, threat: name of the board.
        record: file that `evaluate` wrote with AutoAttack; default: measure now, which takes hours.
        data, seed, device, quiet: of that measurement, as in `timm_robust.evaluate`.
        examples: number of images of that measurement, for a draft; default: as many as the board takes.
        model_id: `<Name><Year><FirstWordOfTitle>`, then `_ARCH`; default: made from the paper.
        paper: what the board shows beside the numbers.
        draft: accept fewer images, and mark everything as a draft.

    Raises:
        UserError: a mistake in any of these; see `timm_robust.robustbench.write_bundle`.
    """
    board, paper, output = find_board(dataset, threat), paper or Paper(), Path(output)
    if examples is not None and not draft:
        raise UserError(f"examples is for a draft: the board takes {board.n_examples} images, or pass draft as well")
    if record is not None:
        evaluation = read_evaluation(record)
    else:
        from timm_robust.api.evaluate import evaluate

        check_submission(checkpoint, output, board, model_id, paper)  # before hours are spent
        output.mkdir(parents=True, exist_ok=True)
        evaluation = evaluate(
            checkpoint,
            data,
            attacks=["clean", "autoattack"],
            examples=examples or (None if draft else board.n_examples),
            seed=seed,
            eps=board.eps_text,
            norm=board.threat,
            device=device,
            json=output / "evaluation.json",
            quiet=quiet,
        ).to_dict()
    return write_bundle(
        checkpoint, evaluation, output, dataset=dataset, threat=threat, model_id=model_id, paper=paper, draft=draft
    )
