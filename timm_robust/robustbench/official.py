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
from timm_robust.utils.environment import versions

if TYPE_CHECKING:
    from torch import Tensor

    from timm_robust.evaluation.inputs import EvalInputs
    from timm_robust.evaluation.settings import EvalSettings

DATASETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}
"""Data sets of the boards by number of classes."""

IMAGENET_PREPROCESSING = "Res256Crop224"


@dataclass
class Benchmark:
    """Result of `robustbench.benchmark`, with the verdict of each image.

    Attributes:
        clean_accuracy, robust_accuracy: shares in [0, 1].
        robust: bool [N], whether each image withstood all attacks, in data order; None if the authors' own `autoattack`
            ran, which does not report it.
    """

    clean_accuracy: float
    robust_accuracy: float
    robust: Tensor | None


def benchmark(
    inputs: EvalInputs,
    settings: EvalSettings | None = None,
    *,
    log_path: str | Path | None = None,
    quiet: bool = True,
) -> Benchmark:
    """Runs `robustbench.benchmark` of the released package.

    It passes no seed to AutoAttack, which then takes the clock's; here it gets one, so that the verdicts are those of
    `timm_robust.evaluate` with the same seed and batch size. Process-wide state is left as it was.

    Args:
        inputs: model, images, labels and threat; `board_images` loads RobustBench's own.
        settings: batch size (RobustBench's own default is 32) and seed; the verdicts depend on both.
        log_path: file that AutoAttack's lines are appended to.
        quiet: print nothing.

    Raises:
        UserError: no real RobustBench, or no board for this norm and number of classes.
    """
    from timm_robust.attacks.attack_mode import attack_mode  # these need torch, which listings do without
    from timm_robust.evaluation.autoattack import kept_process_state
    from timm_robust.evaluation.settings import DEFAULTS  # loads torch

    settings, board = settings or DEFAULTS, require_board(inputs)
    # without attack_mode, FAB's backward passes would leave gradients in the weights
    with released() as package, attack_mode(inputs.model), kept_process_state(), _printing(not quiet):
        module: Any = package.eval
        made, runs = module.AutoAttack, []

        def adversary(*args: Any, **kwargs: Any) -> Any:
            runs.append(made(*args, seed=settings.seed, **kwargs))
            return runs[-1]

        changes = {
            "AutoAttack": partial(adversary, verbose=not quiet),
            "load_clean_dataset": lambda *_: (inputs.images, inputs.targets),
        }
        with _changed(module, changes):
            clean, robust = module.benchmark(
                inputs.model,
                n_examples=len(inputs),
                dataset=board.dataset,
                threat_model=board.threat,
                data_dir="",
                device=inputs.device,
                batch_size=settings.batch_size,
                eps=inputs.threat.eps,
                log_path=None if log_path is None else str(log_path),
                preprocessing=IMAGENET_PREPROCESSING if board.dataset == "imagenet" else None,
            )
    return Benchmark(clean, robust, getattr(runs[-1], "robust", None))


def board_images(
    dataset: str = "cifar10",
    threat: str = "Linf",
    *,
    examples: int | None = None,
    data_dir: str | Path = "./data",
    preprocessing: Any = None,
) -> tuple[Tensor, Tensor]:
    """The images of a board, as RobustBench loads them.

    Args:
        dataset, threat: name of the board.
        examples: number of images, from the first; default: as many as the board takes.
        data_dir: folder of the data set; RobustBench downloads CIFAR if it is not there.
        preprocessing: RobustBench's name of an ImageNet preprocessing, or a transform; default: Res256Crop224.

    Returns:
        float [N, C, H, W] in [0, 1] and int64 [N].

    Raises:
        UserError: no real RobustBench, no such board, or data that is neither there nor downloaded.
    """
    board = find_board(dataset, threat)
    if board.dataset == "imagenet" and preprocessing is None:
        preprocessing = IMAGENET_PREPROCESSING
    with released() as package, _printing(False):
        module: Any = package.eval
        data, norm = module.BenchmarkDataset(board.dataset), module.ThreatModel(board.threat)
        transform = module.get_preprocessing(data, norm, None, preprocessing)
        try:
            return module.load_clean_dataset(data, examples or board.n_examples, str(data_dir), transform)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and "Dataset not found" not in str(error):
                raise
            raise UserError(
                f"{board.dataset} could not be read from {str(data_dir)!r} nor downloaded ({error}): put it there"
            ) from error


def require_board(inputs: EvalInputs) -> Board:
    """The board for this number of classes and this norm.

    Raises:
        UserError: RobustBench has none.
    """
    classes = inputs.num_classes
    if classes not in DATASETS:
        raise UserError(f"RobustBench measures models with 10, 100 or 1000 classes, this one has {classes}")
    return find_board(DATASETS[classes], inputs.threat.norm)


def benchmark_entry(inputs: EvalInputs, settings: EvalSettings) -> dict[str, Any]:
    """`benchmark` as an entry of an evaluation's record.

    Raises:
        UserError: as `benchmark`.
    """
    started = time.perf_counter()
    found = benchmark(inputs, settings)
    return {
        "robust_accuracy": found.robust_accuracy,
        "n_examples": len(inputs),
        "seconds": round(time.perf_counter() - started, 2),
        "implementation": f"robustbench {versions().get('robustbench', '(version unknown)')}",
        "batch_size": settings.batch_size,
        "robust": [] if found.robust is None else found.robust.int().tolist(),
    }


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
