"""AutoAttack through whichever implementation is installed, verdict for verdict, attack by attack.

F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
ICML 2020, arXiv:2003.01690. The released package is `pyautoattack`, the authors' repository installs `autoattack`;
their constructors and logs differ, and neither handles fewer than ten classes nor resumes. The attacks, their checks
and their draws are the package's; which images they get, in which batches and with which seed, is decided here as
there, so that an evaluation can be killed between any two batches and go on.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.errors import UserError, unknown
from timm_robust.evaluation.attack_spec import CLASSES_NEEDED
from timm_robust.evaluation.autoattack_package import PACKAGES, implementation, implementation_version
from timm_robust.evaluation.preconditions import require_eval
from timm_robust.threat import Threat
from timm_robust.utils.random import preserve_rng_state

STANDS, WRONG = -1, 0
"""What `fell_to` says of an image that stands, and of one that was misclassified before any attack."""

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The published ensembles, in the order they run."""

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
        fell_to: int64 [N], the attack that broke each image, counted from 1 in the order of `after`; 0 where it was
            misclassified before any attack, -1 where it stands.
        after: share of images that stand after each attack, in [0, 1], keyed by attack in the order they ran.
        seconds: of each attack.
        flags: AutoAttack's own warnings, explained.
        implementation: package and version that ran.
    """

    robust: Tensor
    fell_to: Tensor
    after: dict[str, float]
    seconds: dict[str, float]
    flags: list[str]
    implementation: str


@dataclass
class AutoAttackProgress:
    """Where a run is, in plain values; a run given it goes on with the batch after.

    Attributes:
        fell_to: as in `AutoAttackResult`; empty before the images were classified.
        attack: the attack that runs.
        batches: how many of its batches are done.
        seconds: of each attack so far.
        flags: warnings so far.
    """

    fell_to: list[int] = field(default_factory=list)
    attack: str = ""
    batches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Log:
    """Stands in for the package's logger, and keeps its warnings."""

    def __init__(self, flags: list[str]) -> None:
        self.flags = flags

    def log(self, message: str) -> None:
        for words, meaning in FLAGS.items():
            if words in message and meaning not in self.flags:
                self.flags.append(meaning)

    debug = info = warning = log


def attacks_for(num_classes: int, version: str = "standard") -> tuple[list[str], int]:
    """Attacks of an ensemble that are defined for so many classes, and how many targets there are at most.

    The DLR loss needs three classes, its targeted form four; targeted attacks have at most K - 1 targets (published:
    nine).

    Raises:
        UserError: one class, or an unknown version.
    """
    if num_classes < 2:
        raise UserError(f"AutoAttack needs at least 2 classes, this model has {num_classes}")
    if version not in VERSIONS:
        raise unknown("AutoAttack version", version, VERSIONS)
    attacks = [name for name in VERSIONS[version] if num_classes >= CLASSES_NEEDED.get(name, 2)]
    return attacks, min(9, num_classes - 1)


def run_autoattack(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    version: str = "standard",
    batch_size: int = 250,
    seed: int = 0,
    on_batch: Callable[[str, int, int, float], None] | None = None,
    progress: AutoAttackProgress | None = None,
    keep: Callable[[AutoAttackProgress], None] | None = None,
    package: str | None = None,
) -> AutoAttackResult:
    """Runs an ensemble of AutoAttack, reference arithmetic and draws.

    The verdicts are those of calling the implementation by hand with the same seed and batch size (AutoAttack reseeds
    at each batch, so both matter). The global random state is restored afterwards.

    Args:
        model: in eval mode, float32, images in [0, 1] to logits.
        images: float [N, C, H, W] in [0, 1].
        targets: int64 [N].
        threat: Linf, L2 or L1.
        version: `standard`, `plus`, or `rand` for models whose outputs are random.
        on_batch: called after each batch with attack, batch number, number of batches and the share that stands so far.
        progress: of a run that was stopped; it goes on there, with the same verdicts as an uninterrupted run.
        keep: called after each batch with where the run is.
        package: `autoattack` or `pyautoattack`; by default whichever is installed.

    Raises:
        UserError: a model in train mode, an unknown version, or no implementation.
    """
    require_eval(model)
    package = package or implementation()
    device = next(model.parameters()).device
    # a view in its DLR loss fails on channels_last strides
    images, targets = images.contiguous(), targets.contiguous()
    with torch.no_grad():
        num_classes = model(images[:1].to(device)).shape[1]
    attacks, n_targets = attacks_for(num_classes, version)
    at = progress or AutoAttackProgress()
    if at.fell_to and len(at.fell_to) != len(images):
        raise UserError(
            f"the progress to go on from has {len(at.fell_to)} images, expected {len(images)}: it is of another run"
        )
    log = _Log(at.flags)
    checks = importlib.import_module(f"{package}.checks")
    with attack_mode(model, "eval"), kept_process_state(), _silenced(), torch.no_grad():
        adversary = _build(package, model, threat, version, seed, device, n_targets, log)
        torch.manual_seed(seed)  # for models whose outputs are random
        if not at.fell_to:
            _check_defense(checks, model, images[:batch_size].to(device), targets[:batch_size].to(device), version, log)
            right = torch.cat(
                [
                    model(x.to(device)).max(dim=1)[1] == y.to(device)
                    for x, y in zip(images.split(batch_size), targets.split(batch_size), strict=True)
                ]
            )
            at.fell_to = torch.where(right, STANDS, WRONG).tolist()
        fell_to = torch.tensor(at.fell_to)
        for place, attack in enumerate(attacks, 1):
            if at.attack and attack != at.attack and attacks.index(at.attack) >= place:
                continue  # ran before the run was stopped
            if attack != at.attack:
                at.attack, at.batches = attack, 0
            # the images that stood when this attack began, in the batches that they had then
            batches = ((fell_to == STANDS) | (fell_to == place)).nonzero().squeeze(1).split(batch_size)
            for number, rows in enumerate(batches, 1):
                if number <= at.batches or len(rows) == 0:
                    continue
                started = time.perf_counter()
                x, y = (part[rows.to(part.device)].to(device) for part in (images, targets))
                torch.manual_seed(seed)  # as the attack does, but before its first forward: random models resume too
                adversarial = _attack(adversary, attack, seed, x, y)
                fallen = (model(adversarial).max(dim=1)[1] != y).cpu()
                fell_to[rows[fallen]] = place
                at.fell_to, at.batches = fell_to.tolist(), number
                at.seconds[attack] = at.seconds.get(attack, 0.0) + time.perf_counter() - started
                if keep:
                    keep(at)
                if on_batch:
                    on_batch(attack, number, len(batches), (fell_to == STANDS).double().mean().item())
    standing = [1 - (fell_to == WRONG).double().mean().item()]
    for place in range(1, len(attacks) + 1):
        standing.append(((fell_to == STANDS) | (fell_to > place)).double().mean().item())
    after = dict(zip(attacks, standing[1:], strict=True))
    checks.check_square_sr({"clean": standing[0], **after}, logger=log)
    seconds = {attack: round(at.seconds.get(attack, 0.0), 2) for attack in attacks}
    return AutoAttackResult(fell_to == STANDS, fell_to, after, seconds, at.flags, implementation_version(package))


def _build(
    package: str,
    model: nn.Module,
    threat: Threat,
    version: str,
    seed: int,
    device: torch.device,
    n_targets: int,
    log: _Log,
) -> Any:
    module = importlib.import_module(package)
    arguments = {"norm": threat.norm, "eps": threat.eps, "seed": seed, "version": version, "device": device}
    adversary = module.AutoAttack(model, **arguments)
    for part in (adversary.apgd_targeted, adversary.fab):
        part.n_target_classes = min(part.n_target_classes, n_targets)
    for part in (adversary.apgd, adversary.apgd_targeted):
        part.logger = log
    return adversary


def _check_defense(checks: Any, model: nn.Module, images: Tensor, targets: Tensor, version: str, log: _Log) -> None:
    """AutoAttack's checks for defenses that it does not measure well, on the first batch as there."""
    if version != "rand":
        checks.check_randomized(model, images, targets, bs=len(images), logger=log)
    checks.check_range_output(model, images, logger=log)
    checks.check_dynamic(model, images, False, logger=log)


def _attack(adversary: Any, name: str, seed: int, images: Tensor, targets: Tensor) -> Tensor:
    """One attack on one batch, set as `run_standard_evaluation` sets it."""
    parts: dict[str, tuple[Any, dict[str, Any]]] = {
        "apgd-ce": (adversary.apgd, {"loss": "ce"}),
        "apgd-dlr": (adversary.apgd, {"loss": "dlr"}),
        "apgd-t": (adversary.apgd_targeted, {}),
        "fab": (adversary.fab, {"targeted": False}),
        "fab-t": (adversary.fab, {"targeted": True, "n_restarts": 1}),
        "square": (adversary.square, {}),
    }
    part, settings = parts[name]
    for setting, value in {"seed": seed, **settings}.items():
        setattr(part, setting, value)
    return part.perturb(images, targets)


@contextlib.contextmanager
def kept_process_state() -> Iterator[None]:
    """Restores what AutoAttack leaves changed in the process: generators, the trace function, a global counter.

    Its check for dynamic defenses ends with `sys.settrace(None)`, which kills debuggers and coverage, and counts in a
    global that is never reset, so that one flagged model would flag every later one.
    """
    trace = sys.gettrace()
    counts = [getattr(sys.modules.get(f"{name}.checks"), "funcs", {}) for name in PACKAGES]
    before = [dict(one) for one in counts]
    for one in counts:
        one.update(dict.fromkeys(one, 0))
    try:
        with preserve_rng_state():
            yield
    finally:
        sys.settrace(trace)
        for one, values in zip(counts, before, strict=True):
            one.update(values)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Silences the implementations' own logging and printing."""
    logger = logging.getLogger("auto-attack")
    level, disabled = logger.level, logger.disabled
    logger.disabled = True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled = disabled
        logger.setLevel(level)
