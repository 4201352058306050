"""The fast mode of AutoAttack: the same attacks on lanes that stay full, crafted on a faster copy of the model.

The verdict of an image is whether any attack broke it, so the order of the jobs does not matter, and every draw is
keyed by image, attack, job and step: the result does not depend on batch size, resume or number of processes, but for
the last bits of the network's own arithmetic. For development: submissions take the reference only.

bf16 has two to three digits: logits that differ in float32 are equal in it, so it misses images that are broken by a
hair. Of the strongest white-box attack, the jobs whose best point came close to the boundary run once more in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from timm_robust.errors import UserError
from timm_robust.evaluation.autoattack import attacks_for
from timm_robust.evaluation.budget import EnsembleProgress
from timm_robust.evaluation.fast import apgd, fab, square
from timm_robust.evaluation.fast.apgd import APGD, APGDState
from timm_robust.evaluation.fast.lanes import Attack, Problem, Queue, sweep
from timm_robust.evaluation.fast.network import Network
from timm_robust.evaluation.fast.verdict import Judge
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import DEFAULTS, EvalSettings, FastMode
from timm_robust.evaluation.state import NO_SLOT, Slot
from timm_robust.threat import Threat
from timm_robust.utils.progress import Progress

STREAMS = {"apgd-ce": 1, "apgd-dlr": 2, "apgd-t": 3, "fab": 4, "fab-t": 5, "square": 6}
"""Numbers of the attacks, for their draws; part of what a seed means."""

CPU_LANES, CPU_LANES_FORWARD = 24, 64
"""Larger batches fall out of a processor's caches and cost more per image; passes without gradients keep less."""
LOOK_EVERY_ON_GPU = 5
SECONDS_BETWEEN_SAVES = 5.0


@dataclass
class FastResult:
    """Outcome of one run.

    Attributes:
        robust: bool [N] on the CPU, whether each image withstood all attacks.
        broken_by: int64 [N], the attack that broke each image, counted from 1 in the order of `after`; 0 where it was
            misclassified before any attack, -1 where it was never broken.
        after: robust accuracy after each attack, in [0, 1], in the order they ran.
        seconds: duration of each attack.
        adversarial: [N, C, H, W] on the images' device: what broke each image, the clean image elsewhere; after a
            resume only what this call found.
    """

    robust: Tensor
    broken_by: Tensor
    after: dict[str, float]
    seconds: dict[str, float]
    adversarial: Tensor


def run_fast(
    inputs: EvalInputs,
    version: str = "standard",
    settings: EvalSettings = DEFAULTS,
    *,
    skip: Collection[str] = (),
    slot: Slot = NO_SLOT,
    progress: Progress | None = None,
) -> FastResult:
    """AutoAttack (arXiv:2003.01690), fast: agrees with the reference within the noise of another seed.

    No generator, flag or mode of the process or of the model changes.

    Args:
        inputs: deterministic model and images, under Linf or L2; a subset has the verdicts that the whole would give.
        version: `standard` or `plus`.
        settings: batch size (on a CPU at most 24 images are attacked at once, and 64 by Square), seed, and how the fast
            mode crafts; by default in float32.
        skip: attacks to leave out.
        slot: unfinished state of plain values and CPU tensors, written every few seconds and after each attack; the
            verdicts of a resumed run are those of an uninterrupted one. Jobs in progress start again.
        progress: called with forward passes done, if the images that are still correct stay so.

    Raises:
        UserError: a model that cannot be copied, a norm or version without a fast mode, or a state of other images.
    """
    require_fast(inputs.threat, version)
    mode, batch_size, on_cpu = settings.fast or FastMode(), settings.batch_size, inputs.device.type == "cpu"
    names, n_targets = attacks_for(inputs.num_classes, version)
    names = [name for name in names if name not in skip]
    images, targets, threat = inputs.images, inputs.targets, inputs.threat
    judge = Judge(inputs.model, images, targets, threat, min(batch_size, CPU_LANES) if on_cpu else batch_size)
    if len(inputs) == 0:  # more processes than images
        none = torch.zeros(0, dtype=torch.long)
        return FastResult(none < 0, none, dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), judge.adversarial)
    logits = judge.logits(images)
    state = _State(logits.argmax(1) == targets.cpu(), slot)
    network = Network(inputs.model, images[:8], precision=mode.precision, compile=mode.compile, full=judge.batch_size)
    problem = Problem(
        network, images, targets, inputs.indices, logits.argsort(1, descending=True), threat, settings.seed
    )
    exact = None if mode.precision == "fp32" else replace(problem, network=Network(inputs.model, images[:8]))
    strongest = "apgd-t" if "apgd-t" in names else "apgd-ce"
    report = EnsembleProgress(version, names, len(inputs), progress)
    for place, name in enumerate(names, 1):
        if name in state.finished:
            continue
        attack = _attack(name, problem, version, n_targets)
        again = cast(APGD, _attack(name, exact, version, n_targets)) if exact and name == strongest else None
        lanes = _cpu_lanes(attack, int(state.still_correct.sum()), batch_size) if on_cpu else batch_size
        _run(_Step(name, place, attack, again, lanes), judge, state, report)
    broken_by = state.broken_by
    after = {
        name: ((broken_by < 0) | (broken_by > place)).double().mean().item() for place, name in enumerate(names, 1)
    }
    seconds = {name: round(state.seconds.get(name, 0.0), 2) for name in names}
    return FastResult(state.still_correct, broken_by, after, seconds, judge.adversarial)


def _cpu_lanes(attack: Attack, images: int, batch_size: int) -> int:
    """Number of lanes that suits a processor's caches; Square gets equal batches, since a small last one takes as many
    steps as a full one."""
    if attack.gradients:
        return min(batch_size, CPU_LANES)
    batches = math.ceil(images / min(batch_size, CPU_LANES_FORWARD))
    return max(math.ceil(images / max(batches, 1)), 1)


class _State:
    """Unfinished run.

    Attributes:
        still_correct: bool [N].
        broken_by: int64 [N], as in `FastResult`.
        attack: running attack.
        ended: bool [N, jobs], jobs of this attack that are over.
        close: bool [N, jobs], jobs of this attack to run once more.
        finished: attacks that are over.
        seconds: duration of each attack so far.
    """

    def __init__(self, still_correct: Tensor, slot: Slot) -> None:
        self.still_correct, self.slot = still_correct, slot
        self.broken_by = torch.where(still_correct, -1, 0)
        self.attack = ""
        self.ended = self.close = torch.zeros(0, 0, dtype=torch.bool)
        self.finished: list[str] = []
        self.seconds: dict[str, float] = {}
        if kept := slot.content:
            if len(kept["broken_by"]) != len(still_correct):
                raise UserError(
                    f"the state to resume from has {len(kept['broken_by'])} images, expected {len(still_correct)}: "
                    "it belongs to another run"
                )
            self.broken_by = kept["broken_by"].clone()
            self.still_correct = self.broken_by < 0
            self.attack, self.ended, self.close = kept["attack"], kept["ended"].clone(), kept["close"].clone()
            self.finished, self.seconds = list(kept["finished"]), dict(kept["seconds"])

    def begin(self, name: str, jobs: int) -> None:
        """Makes `name` the running attack, unless it is."""
        if self.attack != name:
            self.attack, self.ended = name, torch.zeros(len(self.still_correct), jobs, dtype=torch.bool)
            self.close = self.ended.clone()

    def save(self) -> None:
        if self.slot.write is None:
            return
        self.slot.write(
            {
                "broken_by": self.broken_by.clone(),
                "attack": self.attack,
                "ended": self.ended.clone(),
                "close": self.close.clone(),
                "finished": list(self.finished),
                "seconds": dict(self.seconds),
            }
        )


@dataclass(frozen=True)
class _Step:
    """One attack of an ensemble, its place from 1, and its number of lanes; `again` reruns jobs that came close."""

    name: str
    place: int
    attack: Attack
    again: APGD | None
    lanes: int


def _run(step: _Step, judge: Judge, state: _State, report: EnsembleProgress) -> None:
    """Runs one attack on all images that are still correct."""
    name, attack, again = step.name, step.attack, step.again
    state.begin(name, attack.jobs)
    attacked = state.still_correct | (state.broken_by == step.place)
    started, before = time.perf_counter(), state.seconds.get(name, 0.0)
    saved = started

    def clock() -> None:
        state.seconds[name] = before + time.perf_counter() - started

    def confirm(rows: Tensor, points: Tensor) -> Tensor:
        broken = judge(rows, points)
        state.broken_by[rows[broken]] = step.place
        return broken

    def tick() -> None:
        nonlocal saved
        if report.progress:
            ended = int((state.ended | ~state.still_correct[:, None])[attacked].sum())
            total = int(attacked.sum()) * attack.jobs
            report.update(name, ended, total, state.still_correct.double().mean().item())
        if state.slot.write and time.perf_counter() - saved >= SECONDS_BETWEEN_SAVES:
            clock()
            state.save()
            saved = time.perf_counter()

    def note(lanes: APGDState, done: Tensor) -> None:
        state.close[lanes.rows[done], lanes.jobs[done]] = again.close(lanes).cpu()[done] if again else False

    def settle(lanes: APGDState, done: Tensor) -> None:
        state.close[lanes.rows[done], lanes.jobs[done]] = False

    settings: dict[str, Any] = {
        "lanes": step.lanes, "look_every": 1 if judge.device.type == "cpu" else LOOK_EVERY_ON_GPU, "tick": tick,
    }  # fmt: skip
    sweep(attack, Queue(state.ended, state.still_correct), confirm, **settings, note=note if again else None)
    if again:
        sweep(again, Queue(~state.close, state.still_correct), confirm, **settings, note=settle)
    clock()
    state.finished.append(name)
    state.save()


def _attack(name: str, problem: Problem, version: str, n_targets: int) -> Attack:
    """An attack with the settings of its ensemble."""
    restarts = 5 if version == "plus" else 1
    stream = STREAMS[name]
    if name == "square":
        return square.Square(problem, stream, square.QUERIES)
    if name == "fab-t":
        return fab.FAB(problem, True, n_targets, stream, fab.STEPS)
    if name == "fab":
        return fab.FAB(problem, False, restarts, stream, fab.STEPS)
    if name == "apgd-t":
        return apgd.APGD(problem, "dlr-targeted", n_targets, stream, apgd.STEPS)
    return apgd.APGD(problem, name.removeprefix("apgd-"), restarts, stream, apgd.STEPS)


def require_fast(threat: Threat, version: str) -> None:
    """Refuses norms and versions without a fast mode.

    Raises:
        UserError: another norm or version.
    """
    if threat.norm not in ("Linf", "L2"):
        raise UserError(f"the fast mode knows Linf and L2, not {threat.norm}: use the reference mode for it")
    if version == "rand":
        raise UserError("the fast mode has no version rand, whose outputs are random: use the reference mode for it")
