"""AutoAttack *standard*, through whichever implementation is installed, verdict for verdict.

F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
ICML 2020, arXiv:2003.01690. The released package is `pyautoattack`, the authors' repository installs `autoattack`; they
differ in constructor, call and logging, and neither handles fewer than ten classes. All of that is kept in this file.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks import crafting
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import require_eval
from timm_robust.threat import Threat

FLAGS = {
    "randomized defense": "the outputs are random: AutoAttack's `rand` version would be needed",
    "probability distribution": "the outputs look like probabilities: return logits instead of a softmax",
    "points with zero gradient": "some images have zero gradient: gradients may be masked",
    "Square Attack has decreased": "Square beat the white-box attacks: gradients may be masked",
    "dynamic defense": "the forward pass runs an optimisation or a backward pass",
}
"""AutoAttack's own warnings by the words to look for, and what each means."""


@dataclass
class AutoAttackResult:
    """Verdicts of one run.

    Attributes:
        robust: bool [N], whether each image stands after all attacks, in data order.
        after: share of images that stand after each attack, in [0, 1], keyed by attack in the order they ran.
        flags: AutoAttack's own warnings, explained.
        implementation: package and version that ran.
    """

    robust: Tensor
    after: dict[str, float]
    flags: list[str]
    implementation: str


@dataclass
class _Log:
    """Stands in for either implementation's logger: counts what each attack broke, keeps the warnings."""

    total: int
    clean: float = 0.0
    broken: dict[str, int] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    on_batch: Callable[[str, int, int], None] | None = None

    def log(self, message: str) -> None:
        done = re.match(r"(\S+) - (\d+)/(\d+) - (\d+) out of \d+ successfully perturbed", message)
        if done:
            attack = done[1]
            self.broken[attack] = self.broken.get(attack, 0) + int(done[4])
            if self.on_batch:
                self.on_batch(attack, int(done[2]), int(done[3]))
        for words, meaning in FLAGS.items():
            if words in message and meaning not in self.flags:
                self.flags.append(meaning)

    debug = info = warning = log


def implementation() -> str:
    """Import name of the installed implementation: the authors' package where it is there, else the released one.

    Raises:
        UserError: neither is installed.
    """
    for name in ("autoattack", "pyautoattack"):
        if importlib.util.find_spec(name) is not None:
            return name
    raise UserError("AutoAttack is not installed: pip install pyautoattack")


def attacks_for(num_classes: int) -> tuple[list[str], int]:
    """Attacks of the standard ensemble that are defined for so many classes, and how many targets they take.

    The targeted DLR loss needs four classes; the targeted attacks have at most K - 1 targets (published: nine).
    """
    if num_classes < 2:
        raise UserError(f"AutoAttack needs at least 2 classes, this model has {num_classes}")
    attacks = ["apgd-ce", "apgd-t", "fab-t", "square"]
    if num_classes < 4:
        attacks.remove("apgd-t")
    return attacks, min(9, num_classes - 1)


def run_autoattack(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    batch_size: int = 250,
    seed: int = 0,
    on_batch: Callable[[str, int, int], None] | None = None,
    package: str | None = None,
) -> AutoAttackResult:
    """Runs the standard ensemble.

    The verdicts are those of calling the implementation by hand with the same seed and batch size (AutoAttack reseeds
    at each batch, so both matter). The global random state is restored afterwards.

    Args:
        model: in eval mode, float32, images in [0, 1] to logits.
        images: float [N, C, H, W] in [0, 1].
        targets: int64 [N].
        threat: Linf or L2.
        on_batch: called after each batch with attack, batch number and number of batches.
        package: `autoattack` or `pyautoattack`; by default whichever is installed.

    Raises:
        UserError: a model in train mode, or no implementation.
    """
    require_eval(model)
    package = package or implementation()
    device = next(model.parameters()).device
    # a view in its DLR loss fails on channels_last strides
    images, targets = images.contiguous(), targets.contiguous()
    with torch.no_grad():
        num_classes = model(images[:1].to(device)).shape[1]
    attacks, n_targets = attacks_for(num_classes)
    log = _Log(total=len(images), on_batch=on_batch)
    with crafting(model, "eval"), _kept_process_state(package, device), _listening(log):
        adversary = _build(package, model, threat, seed, device)
        adversary.attacks_to_run = attacks
        adversary.apgd_targeted.n_target_classes = n_targets
        adversary.fab.n_target_classes = n_targets
        for part in (adversary, adversary.apgd, adversary.apgd_targeted):
            part.logger = log
        labels = _run(adversary, images, targets, batch_size)
    robust = (labels == targets).cpu()
    return AutoAttackResult(robust, _after(log, attacks, robust), log.flags, f"{package} {_version(package)}")


def _build(package: str, model: nn.Module, threat: Threat, seed: int, device: torch.device) -> Any:
    module = importlib.import_module(package)
    arguments = {"norm": threat.norm, "eps": threat.eps, "seed": seed, "version": "standard", "device": device}
    return module.AutoAttack(model, **arguments)


def _run(adversary: Any, images: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    """Labels after the attacks; the two implementations name the batch size differently."""
    if "batch_size" in inspect.signature(adversary.run_standard_evaluation).parameters:
        return adversary.run_standard_evaluation(images, targets, batch_size=batch_size)[1]
    return adversary.run_standard_evaluation(images, targets, bs=batch_size, return_labels=True)[1]


def _after(log: _Log, attacks: list[str], robust: Tensor) -> dict[str, float]:
    """Share standing after each attack, from the exact counts of the log, backwards from the final verdicts."""
    standing, after = int(robust.sum()), {}
    for attack in reversed(attacks):
        after[attack] = standing / log.total
        standing += log.broken.get(attack, 0)
    return dict(reversed(after.items()))


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "(version unknown)"


@contextlib.contextmanager
def _kept_process_state(package: str, device: torch.device) -> Iterator[None]:
    """Restores what AutoAttack leaves changed in the process: generators, the trace function, a global counter.

    Its check for dynamic defenses ends with `sys.settrace(None)`, which kills debuggers and coverage, and counts in a
    global that is never reset, so that one flagged model would flag every later one.
    """
    trace = sys.gettrace()
    checks = importlib.import_module(f"{package}.checks")
    counts = getattr(checks, "funcs", {})
    for name in counts:
        counts[name] = 0
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        sys.settrace(trace)


@contextlib.contextmanager
def _listening(log: _Log) -> Iterator[None]:
    """Silences the implementations' own logging while the adapter listens."""
    logger = logging.getLogger("auto-attack")
    level, logger.disabled = logger.level, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled = False
        logger.setLevel(level)
