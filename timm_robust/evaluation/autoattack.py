"""AutoAttack through whichever implementation is installed, verdict for verdict, attack by attack.

F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
ICML 2020, arXiv:2003.01690. The released package is `pyautoattack`, the authors' repository installs `autoattack`;
their constructors and logs differ, and neither handles fewer than ten classes nor resumes. The attacks, their checks
and their draws are the package's; which images they get, in which batches and with which seed, is decided here as
there, so that an evaluation can be killed between any two batches and resumed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.errors import UserError, unknown
from timm_robust.evaluation.attack_spec import CLASSES_NEEDED
from timm_robust.evaluation.autoattack_package import PACKAGES, implementation, implementation_version
from timm_robust.evaluation.budget import EnsembleProgress
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import DEFAULTS, EvalSettings
from timm_robust.evaluation.state import NO_SLOT, Slot
from timm_robust.utils.progress import Progress
from timm_robust.utils.random import preserve_rng_state

UNBROKEN, WRONG = -1, 0
"""Values of `broken_by` for an image that withstood all attacks, and for one misclassified before any."""

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
    """Outcome of one run.

    Attributes:
        robust: bool [N], whether each image withstood all attacks, in data order.
        broken_by: int64 [N], the attack that broke each image, counted from 1 in the order of `after`; 0 where it was
            misclassified before any attack, -1 where it was never broken.
        after: robust accuracy after each attack, in [0, 1], in the order they ran.
        seconds: duration of each attack.
        flags: AutoAttack's own warnings, explained.
        implementation: package and version that ran.
    """

    robust: Tensor
    broken_by: Tensor
    after: dict[str, float]
    seconds: dict[str, float]
    flags: list[str]
    implementation: str


@dataclass
class AutoAttackState:
    """Unfinished run in plain values; a run that is given it resumes with the next batch.

    Attributes:
        broken_by: as in `AutoAttackResult`; empty before the images were classified.
        attack: running attack.
        batches: number of its batches that are done.
        seconds: duration of each attack so far.
        flags: warnings so far.
    """

    broken_by: list[int] = field(default_factory=list)
    attack: str = ""
    batches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


class _Log:
    """Replaces the package's logger, and collects its warnings."""

    def __init__(self, flags: list[str]) -> None:
        self.flags = flags

    def log(self, message: str) -> None:
        for words, meaning in FLAGS.items():
            if words in message and meaning not in self.flags:
                self.flags.append(meaning)

    debug = info = warning = log


def attacks_for(num_classes: int, version: str = "standard") -> tuple[list[str], int]:
    """Attacks of an ensemble that are defined for this number of classes, and the largest number of targets.

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
    inputs: EvalInputs,
    version: str = "standard",
    settings: EvalSettings = DEFAULTS,
    *,
    slot: Slot = NO_SLOT,
    progress: Progress | None = None,
) -> AutoAttackResult:
    """Runs an ensemble of AutoAttack with the reference's arithmetic and draws.

    The verdicts are those of calling the implementation by hand with the same seed and batch size (AutoAttack reseeds
    at each batch, so both matter). The global random state is restored afterwards.

    Args:
        inputs: float32 model and images; under Linf, L2 or L1.
        version: `standard`, `plus`, or `rand` for models whose outputs are random.
        settings: batch size and seed.
        slot: unfinished state, written after each batch; the verdicts of a resumed run are those of an uninterrupted
            one.
        progress: called after each batch, in forward passes.

    Raises:
        UserError: an unknown version, a state of other images, or no implementation.
    """
    attacks, n_targets = attacks_for(inputs.num_classes, version)
    state = AutoAttackState(**slot.content)
    if state.broken_by and len(state.broken_by) != len(inputs):
        raise UserError(
            f"the state to resume from has {len(state.broken_by)} images, expected {len(inputs)}: it is of another run"
        )
    package, log = implementation(), _Log(state.flags)
    checks = importlib.import_module(f"{package}.checks")
    report = EnsembleProgress(version, attacks, len(inputs), progress)
    with attack_mode(inputs.model, "eval"), kept_process_state(), _silenced(), torch.no_grad():
        adversary = _build(package, inputs, version, settings.seed, n_targets, log)
        torch.manual_seed(settings.seed)  # for models whose outputs are random
        if not state.broken_by:
            state.broken_by = _clean_verdicts(checks, inputs, version, settings.batch_size, log)
        for place, attack in enumerate(attacks, 1):
            if state.attack and attack != state.attack and attacks.index(state.attack) >= place:
                continue  # ran before the run was interrupted
            if attack != state.attack:
                state.attack, state.batches = attack, 0
            for done, total in _attack_batches(adversary, inputs, settings, state, place):
                if slot.write:
                    slot.write(asdict(state))
                robust = (torch.tensor(state.broken_by) == UNBROKEN).double().mean().item()
                report.update(attack, done, total, robust)
    broken_by = torch.tensor(state.broken_by)
    shares = [1 - (broken_by == WRONG).double().mean().item()]
    for place in range(1, len(attacks) + 1):
        shares.append(((broken_by == UNBROKEN) | (broken_by > place)).double().mean().item())
    after = dict(zip(attacks, shares[1:], strict=True))
    checks.check_square_sr({"clean": shares[0], **after}, logger=log)
    seconds = {attack: round(state.seconds.get(attack, 0.0), 2) for attack in attacks}
    version_of_it = implementation_version(package)
    return AutoAttackResult(broken_by == UNBROKEN, broken_by, after, seconds, state.flags, version_of_it)


def _clean_verdicts(checks: Any, inputs: EvalInputs, version: str, batch_size: int, log: _Log) -> list[int]:
    """Runs the checks for unsuitable defenses on the first batch, and classifies the clean images."""
    batches = torch.arange(len(inputs)).split(batch_size)
    _check_defense(checks, inputs.model, *_on_device(inputs, batches[0]), version, log)
    found = []
    for rows in batches:
        images, targets = _on_device(inputs, rows)
        found.append(inputs.model(images).max(dim=1)[1] == targets)
    return torch.where(torch.cat(found), UNBROKEN, WRONG).tolist()


def _attack_batches(
    adversary: Any, inputs: EvalInputs, settings: EvalSettings, state: AutoAttackState, place: int
) -> Iterator[tuple[int, int]]:
    """Runs the attack of `state`, updates the state after each batch, and yields batches done and in all."""
    broken_by = torch.tensor(state.broken_by)
    # the images that were unbroken when this attack began, in the batches that they had then
    batches = ((broken_by == UNBROKEN) | (broken_by == place)).nonzero().squeeze(1).split(settings.batch_size)
    for number, rows in enumerate(batches, 1):
        if number <= state.batches or len(rows) == 0:
            continue
        started = time.perf_counter()
        x, y = _on_device(inputs, rows)
        torch.manual_seed(settings.seed)  # as the attack does, but before its first forward: random models resume too
        adversarial = _attack(adversary, state.attack, settings.seed, x, y)
        broken = (inputs.model(adversarial).max(dim=1)[1] != y).cpu()
        broken_by[rows[broken]] = place
        state.broken_by, state.batches = broken_by.tolist(), number
        state.seconds[state.attack] = state.seconds.get(state.attack, 0.0) + time.perf_counter() - started
        yield number, len(batches)


def _on_device(inputs: EvalInputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels of some rows; contiguous, since a view in the DLR loss fails on channels_last strides."""
    part = inputs.subset(rows)
    return part.images.contiguous().to(inputs.device), part.targets.to(inputs.device)


def _build(package: str, inputs: EvalInputs, version: str, seed: int, n_targets: int, log: _Log) -> Any:
    module, threat = importlib.import_module(package), inputs.threat
    arguments = {"norm": threat.norm, "eps": threat.eps, "seed": seed, "version": version, "device": inputs.device}
    adversary = module.AutoAttack(inputs.model, **arguments)
    for part in (adversary.apgd_targeted, adversary.fab):
        part.n_target_classes = min(part.n_target_classes, n_targets)
    for part in (adversary.apgd, adversary.apgd_targeted):
        part.logger = log
    return adversary


def _check_defense(checks: Any, model: nn.Module, images: Tensor, targets: Tensor, version: str, log: _Log) -> None:
    """AutoAttack's checks for defenses that it does not measure well, on the first batch as in the original."""
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
