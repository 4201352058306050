"""The fast mode of AutoAttack: the same attacks on lanes that stay full, crafted on a faster copy of the model.

The verdict of an image is whether any attack broke it, so the order of the jobs does not matter, and every draw is
keyed by image, attack, job and step: the result does not depend on batch size, resume or number of processes, but for
the last bits of the network's own arithmetic. For development: a record is written from the reference.

bf16 has two to three digits: it takes logits for equal that float32 tells apart, and so misses images that fall by a
hair. Of the strongest white-box attack, the jobs whose best point came close to the boundary run once more in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from timm_robust.errors import UserError
from timm_robust.evaluation.fast import apgd, fab, square
from timm_robust.evaluation.fast.apgd import APGD, APGDState
from timm_robust.evaluation.fast.lanes import Attack, Problem, Queue, sweep
from timm_robust.evaluation.fast.network import Network
from timm_robust.evaluation.fast.verdict import Judge
from timm_robust.evaluation.preconditions import require_eval
from timm_robust.threat import Threat

STREAMS = {"apgd-ce": 1, "apgd-dlr": 2, "apgd-t": 3, "fab": 4, "fab-t": 5, "square": 6}
"""Numbers of the attacks, for their draws; part of what a seed means."""

CPU_LANES, CPU_LANES_FORWARD = 24, 64
"""Larger batches fall out of a processor's caches and cost more for each image; passes without gradients keep less."""
LOOK_EVERY_ON_GPU = 5
SECONDS_BETWEEN_SAVES = 5.0


@dataclass
class FastResult:
    """Verdicts of one run.

    Attributes:
        robust: bool [N] on the CPU, whether each image stands after all attacks.
        fell_to: int64 [N], the attack that broke each image, counted from 1 in the order of `after`; 0 where it was
            misclassified before any attack, -1 where it stands.
        after: share of images that stand after each attack, in [0, 1], in the order they ran.
        seconds: of each attack.
        adversarial: [N, C, H, W] on the images' device: what broke each image, the clean image elsewhere; after a
            resume only what this call found.
    """

    robust: Tensor
    fell_to: Tensor
    after: dict[str, float]
    seconds: dict[str, float]
    adversarial: Tensor


def run_fast(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    version: str = "standard",
    batch_size: int = 256,
    seed: int = 0,
    precision: str = "fp32",
    compile: bool = False,
    indices: Tensor | None = None,
    stands: Tensor | None = None,
    skip: Collection[str] = (),
    on_progress: Callable[[str, int, int, float], None] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> FastResult:
    """AutoAttack (arXiv:2003.01690), fast: agrees with the reference within the noise of another seed.

    No generator, flag or mode of the process or of the model changes.

    Args:
        model: in eval mode, images in [0, 1] to logits, deterministic.
        images: float [N, C, H, W] in [0, 1].
        targets: int64 [N].
        threat: Linf or L2.
        version: `standard` or `plus`.
        batch_size: images that are attacked at once; on a CPU at most 24 are, and 64 by Square.
        seed: of all draws.
        precision: `fp32`, or `bf16` while crafting; verdicts are always the original model's in float32.
        compile: compile the crafting copy for full batches.
        indices: int64 [N], the number of each image in the whole data, where these are a part of it; each shard then
            gives the verdicts that the whole would.
        stands: bool [N], images to attack, of those that are classified correctly; by default all.
        skip: attacks to leave out.
        on_progress: called with attack, jobs ended, jobs in all, and the share of images that stands so far.
        save: called every few seconds and after each attack with a state of plain values and CPU tensors.
        resume: such a state; the run goes on from it, with the same verdicts. Jobs in progress begin anew.

    Raises:
        UserError: a model in train mode or that cannot be copied, a norm or version without a fast mode, unknown
            precision, or a state of other images.
    """
    require_eval(model)
    require_fast(threat, version)
    from timm_robust.evaluation.autoattack import attacks_for

    device = getattr(next(model.parameters(), images), "device", images.device)
    on_cpu = device.type == "cpu"
    judge = Judge(model, images, targets, threat, max(min(batch_size, CPU_LANES) if on_cpu else batch_size, 1))
    logits = judge.logits(images)
    names, n_targets = attacks_for(logits.shape[1], version)
    names = [name for name in names if name not in skip]
    if len(images) == 0:  # more processes than images
        none = torch.zeros(0, dtype=torch.long)
        return FastResult(none < 0, none, dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), judge.adversarial)
    right = logits.argmax(1) == targets.cpu()
    at = _Progress(right if stands is None else right & stands.cpu(), resume)
    network = Network(model, images[:8], precision=precision, compile=compile, full=judge.batch_size)
    numbers = torch.arange(len(images)) if indices is None else indices.cpu()
    problem = Problem(network, images, targets, numbers, logits.argsort(1, descending=True), threat, seed)
    exact = None if precision == "fp32" else replace(problem, network=Network(model, images[:8]))
    strongest = "apgd-t" if "apgd-t" in names else "apgd-ce"
    for place, name in enumerate(names, 1):
        if name in at.finished:
            continue
        attack = _attack(name, problem, version, n_targets)
        again = cast(APGD, _attack(name, exact, version, n_targets)) if exact and name == strongest else None
        lanes = _cpu_lanes(attack, int(at.stands.sum()), batch_size) if on_cpu else batch_size
        _run(name, place, attack, again, judge, at, lanes, on_progress, save)
    after = {
        name: ((at.fell_to < 0) | (at.fell_to > place)).double().mean().item() for place, name in enumerate(names, 1)
    }
    seconds = {name: round(at.seconds.get(name, 0.0), 2) for name in names}
    return FastResult(at.stands, at.fell_to, after, seconds, judge.adversarial)


def _cpu_lanes(attack: Attack, images: int, batch_size: int) -> int:
    """Lanes that suit a processor's caches; for Square equal batches, as a last one of a few takes as many steps."""
    if attack.gradients:
        return min(batch_size, CPU_LANES)
    batches = math.ceil(images / min(batch_size, CPU_LANES_FORWARD))
    return max(math.ceil(images / max(batches, 1)), 1)


class _Progress:
    """Where a run is; `ended` and `close` are of the jobs of `attack`, [N, jobs]: over, and to be run once more."""

    def __init__(self, stands: Tensor, resume: Mapping[str, Any] | None) -> None:
        self.stands = stands
        self.fell_to = torch.where(stands, -1, 0)
        self.attack = ""
        self.ended = self.close = torch.zeros(0, 0, dtype=torch.bool)
        self.finished: list[str] = []
        self.seconds: dict[str, float] = {}
        if resume:
            if len(resume["fell_to"]) != len(stands):
                raise UserError(
                    f"the state to resume from has {len(resume['fell_to'])} images, expected {len(stands)}: "
                    "it belongs to another run"
                )
            self.fell_to = resume["fell_to"].clone()
            self.stands = self.fell_to < 0
            self.attack, self.ended, self.close = resume["attack"], resume["ended"].clone(), resume["close"].clone()
            self.finished, self.seconds = list(resume["finished"]), dict(resume["seconds"])

    def state(self) -> dict[str, Any]:
        return {
            "fell_to": self.fell_to.clone(),
            "attack": self.attack,
            "ended": self.ended.clone(),
            "close": self.close.clone(),
            "finished": list(self.finished),
            "seconds": dict(self.seconds),
        }


def _run(
    name: str,
    place: int,
    attack: Attack,
    again: APGD | None,
    judge: Judge,
    at: _Progress,
    lanes: int,
    on_progress: Callable[[str, int, int, float], None] | None,
    save: Callable[[dict[str, Any]], None] | None,
) -> None:
    """One attack on all images that stand; jobs that came close run once more as `again`."""
    if at.attack != name:
        at.attack, at.ended = name, torch.zeros(len(at.stands), attack.jobs, dtype=torch.bool)
        at.close = at.ended.clone()
    attacked = at.stands | (at.fell_to == place)
    started, before = time.perf_counter(), at.seconds.get(name, 0.0)
    saved = started

    def clock() -> None:
        at.seconds[name] = before + time.perf_counter() - started

    def confirm(rows: Tensor, points: Tensor) -> Tensor:
        fell = judge(rows, points)
        at.fell_to[rows[fell]] = place
        return fell

    def tick() -> None:
        nonlocal saved
        if on_progress:
            ended = int((at.ended | ~at.stands[:, None])[attacked].sum())
            on_progress(name, ended, int(attacked.sum()) * attack.jobs, at.stands.double().mean().item())
        if save and time.perf_counter() - saved >= SECONDS_BETWEEN_SAVES:
            clock()
            save(at.state())
            saved = time.perf_counter()

    def note(state: APGDState, done: Tensor) -> None:
        at.close[state.rows[done], state.jobs[done]] = again.close(state).cpu()[done] if again else False

    def settle(state: APGDState, done: Tensor) -> None:
        at.close[state.rows[done], state.jobs[done]] = False

    look_every = 1 if judge.device.type == "cpu" else LOOK_EVERY_ON_GPU
    queue = Queue(at.ended, at.stands)
    sweep(attack, queue, confirm, lanes=lanes, look_every=look_every, tick=tick, note=note if again else None)
    if again:
        queue = Queue(~at.close, at.stands)
        sweep(again, queue, confirm, lanes=lanes, look_every=look_every, tick=tick, note=settle)
    clock()
    at.finished.append(name)
    if save:
        save(at.state())


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
    """Refuses what the fast mode does not know.

    Raises:
        UserError: another norm or version.
    """
    if threat.norm not in ("Linf", "L2"):
        raise UserError(f"the fast mode knows Linf and L2, not {threat.norm}: use the reference mode for it")
    if version == "rand":
        raise UserError("the fast mode has no version rand, whose outputs are random: use the reference mode for it")
