"""`robustbench.benchmark` itself, from the released package, run on a model with a seed."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from timm_robust.errors import UserError
from timm_robust.robustbench.package import released
from timm_robust.robustbench.record import Board, find_board
from timm_robust.threat import Threat, parse_eps

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass
class Benchmark:
    """What `robustbench.benchmark` returned, and each image's verdict.

    Attributes:
        clean_accuracy, robust_accuracy: shares in [0, 1].
        robust: bool [N], whether each image stands, in data order; None where the authors' own `autoattack` ran, which
            does not tell.
    """

    clean_accuracy: float
    robust_accuracy: float
    robust: Tensor | None


def benchmark(
    model: nn.Module,
    *,
    dataset: str = "cifar10",
    threat: str = "Linf",
    eps: str | float | None = None,
    n_examples: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str | None = None,
    data_dir: str | Path = "./data",
    images: Tensor | None = None,
    targets: Tensor | None = None,
    preprocessing: Any = None,
    log_path: str | Path | None = None,
    quiet: bool = True,
) -> Benchmark:
    """Runs `robustbench.benchmark` of the released package.

    It passes no seed to AutoAttack, which then takes the clock's; here it gets one, so that the verdicts are those of
    `timm_robust.evaluate` with the same seed and batch size. Process-wide state is left as it was.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        dataset, threat: of a board.
        eps: radius such as "8/255", in units of the [0, 1] pixel range; by default the board's.
        n_examples: the first so many images; by default as many as the board takes.
        batch_size: images at once; the verdicts depend on it. RobustBench's own default is 32.
        seed: of AutoAttack's draws.
        device: by default where the model is.
        data_dir: where RobustBench finds the data set; it downloads CIFAR if it is not there.
        images: float [N, C, H, W] in [0, 1], to be used instead of what `data_dir` holds.
        targets: int64 [N], with `images`.
        preprocessing: RobustBench's name of an ImageNet preprocessing, or a transform. [default: Res256Crop224]
        log_path: file that AutoAttack's lines are appended to.
        quiet: print nothing.

    Raises:
        UserError: no real RobustBench, a model in train mode, no such board, or data that is not there.
    """
    from timm_robust.attacks.attack_mode import attack_mode
    from timm_robust.evaluation.autoattack import kept_process_state
    from timm_robust.evaluation.preconditions import require_eval

    require_eval(model)
    board = find_board(dataset, threat)
    radius = board.eps if eps is None else parse_eps(eps, board.threat)[0]
    if (images is None) != (targets is None):
        raise UserError("images and targets go together: pass both or neither")
    n = n_examples or (board.n_examples if images is None else len(images))
    if images is not None and n > len(images):
        raise UserError(f"n_examples is {n}, there are only {len(images)} images")
    if board.dataset == "imagenet" and preprocessing is None:
        preprocessing = "Res256Crop224"
    # without crafting(), FAB's backward passes would leave gradients in the weights
    with released() as package, attack_mode(model), kept_process_state(), _printing(not quiet):
        runs: list[Any] = []

        def adversary(*args: Any, **kwargs: Any) -> Any:
            runs.append(made(*args, seed=seed, **kwargs))
            return runs[-1]

        made = package.eval.AutoAttack  # type: ignore[attr-defined]
        changes: dict[str, Any] = {"AutoAttack": partial(adversary, verbose=not quiet)}
        if images is not None and targets is not None:
            given = images[:n], targets[:n]
            changes["load_clean_dataset"] = lambda *_: given
        with _changed(package.eval, changes):  # type: ignore[attr-defined]
            clean, robust = _call(
                package.eval.benchmark,  # type: ignore[attr-defined]
                model,
                n_examples=n,
                dataset=board.dataset,
                threat_model=board.threat,
                data_dir=str(data_dir),
                device=device or next(model.parameters()).device,
                batch_size=batch_size,
                eps=radius,
                log_path=None if log_path is None else str(log_path),
                preprocessing=preprocessing,
            )
    return Benchmark(clean, robust, getattr(runs[-1], "robust", None))


DATASETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}
"""Data sets of the boards by number of classes."""


def require_board(model: nn.Module, images: Tensor, threat: Threat) -> Board:
    """The board for so many classes and this norm; quick, so that it can be asked before hours are spent.

    Raises:
        UserError: RobustBench has none.
    """
    import torch

    with torch.no_grad():
        classes = model(images[:1].to(next(model.parameters()).device)).shape[1]
    if classes not in DATASETS:
        raise UserError(f"RobustBench measures models with 10, 100 or 1000 classes, this one has {classes}")
    return find_board(DATASETS[classes], threat.norm)


def benchmark_entry(
    model: nn.Module, images: Tensor, targets: Tensor, threat: Threat, *, batch_size: int, seed: int
) -> dict[str, Any]:
    """`benchmark` on given images, as an entry of an evaluation's record.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        images, targets: float [N, C, H, W] in [0, 1] and int64 [N].
        threat: Linf or L2.
        batch_size, seed: as in `benchmark`.

    Raises:
        UserError: as `benchmark`; a number of classes that no board has.
    """
    from timm_robust.utils.environment import versions

    board = require_board(model, images, threat)
    started = time.perf_counter()
    found = benchmark(
        model,
        dataset=board.dataset,
        threat=threat.norm,
        eps=threat.eps_text,
        batch_size=batch_size,
        seed=seed,
        images=images,
        targets=targets,
    )
    return {
        "robust_accuracy": found.robust_accuracy,
        "n_examples": len(images),
        "seconds": round(time.perf_counter() - started, 2),
        "implementation": f"robustbench {versions().get('robustbench', '(version unknown)')}",
        "batch_size": batch_size,
        "robust": [] if found.robust is None else found.robust.int().tolist(),
    }


def _call(function: Any, model: nn.Module, **arguments: Any) -> Any:
    try:
        return function(model, **arguments)
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) or "Dataset not found" in str(error):
            raise UserError(
                f"{arguments['dataset']} could not be read from {arguments['data_dir']!r} nor downloaded ({error}): "
                "put it there, or pass images and targets"
            ) from error
        raise


@contextlib.contextmanager
def _changed(module: ModuleType, values: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextlib.contextmanager
def _printing(shown: bool) -> Iterator[None]:
    with contextlib.nullcontext() if shown else contextlib.redirect_stdout(io.StringIO()):
        yield
