"""Lanes: a batch that stays full while images are broken and attacks on single images end.

Each lane runs one job, an attack on one image with one target or restart. A lane whose job ended, or whose image was
broken in another lane, takes the next job of the queue; when the queue is empty the batch shrinks. The queue has the
first target of all images, then the second, and so on: few images fill a batch with several of their targets side by
side, and an image that is broken early costs no more than it must.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from timm_robust.evaluation.fast.network import Network
from timm_robust.threat import Threat


@dataclass
class Problem:
    """Inputs that all attacks of a run share.

    Attributes:
        network: crafting copy.
        images: [N, C, H, W] in [0, 1].
        targets: int64 [N].
        numbers: int64 [N], number of each image in the whole data set, by which draws are keyed.
        ranks: int64 [N, K], classes by the logits of the clean image, highest first.
        threat: Linf or L2.
        seed: of all draws.
    """

    network: Network
    images: Tensor
    targets: Tensor
    numbers: Tensor
    ranks: Tensor
    threat: Threat
    seed: int

    def lanes(self, rows: Tensor, jobs: Tensor) -> dict[str, Any]:
        """Initial values that the states of all attacks share."""
        clean = self.network.layout(self.images[rows.to(self.images.device)])
        targets = self.targets[rows.to(self.targets.device)].to(clean.device)
        nothing = torch.zeros(len(rows), dtype=torch.bool, device=clean.device)
        return {"rows": rows, "jobs": jobs, "clean": clean, "targets": targets, "hit": nothing, "done": nothing.clone()}


@dataclass
class State:
    """A batch of lanes: all tensors have the lanes as first axis.

    Attributes:
        rows: number of the image, on the CPU.
        jobs: number of the target or restart, on the CPU.
        clean: clean image.
        targets: label.
        hit: whether the crafting copy has misclassified `point` since the last look.
        done: whether the job is over.
        point: misclassified point.
    """

    rows: Tensor
    jobs: Tensor
    clean: Tensor
    targets: Tensor
    hit: Tensor
    done: Tensor
    point: Tensor

    def catch(self, wrong: Tensor, points: Tensor) -> None:
        """Records the points of the lanes in `wrong`, unless they have one already."""
        if wrong.device.type == "cpu" and not wrong.any():
            return
        new = wrong & ~self.hit
        self.point = torch.where(new[:, None, None, None], points, self.point)
        self.hit = self.hit | wrong


AnyState = TypeVar("AnyState", bound=State)


class Attack(Protocol):
    """An attack on lanes. The draws of a lane depend only on the image's number and its job."""

    jobs: int
    """Targets or restarts of each image."""
    gradients: bool
    """Whether its passes need any."""

    def start(self, rows: Tensor, jobs: Tensor) -> Any:
        """The state of new lanes."""

    def step(self, state: Any) -> None:
        """Advances all lanes in place; sets `hit`, `point` and `done`."""


def take(state: AnyState, lanes: Tensor) -> AnyState:
    """The state of some lanes only; `lanes` is int64 on the CPU, since a GPU would have to count a mask first."""
    there = lanes.to(state.clean.device)
    parts = {field.name: getattr(state, field.name) for field in fields(state)}
    return replace(state, **{name: part[lanes if part.device.type == "cpu" else there] for name, part in parts.items()})


def join(states: list[AnyState]) -> AnyState:
    """Several states as one."""
    names = [field.name for field in fields(states[0])]
    return replace(states[0], **{name: torch.cat([getattr(state, name) for state in states]) for name in names})


class Queue:
    """Jobs that have not started; `ended` [N, jobs] marks those that are over, and broken images need no more."""

    def __init__(self, ended: Tensor, still_correct: Tensor) -> None:
        self.ended, self.still_correct = ended, still_correct
        open_jobs = (~ended & still_correct[:, None]).T.nonzero()  # by job, then by image
        self.jobs, self.rows = open_jobs.unbind(1)
        self.at = 0

    def next(self, n: int) -> tuple[Tensor, Tensor]:
        """Rows and jobs of at most `n` jobs whose images are still correct."""
        rest = self.at + self.still_correct[self.rows[self.at :]].nonzero().squeeze(1)[:n]
        self.at = int(rest[-1]) + 1 if len(rest) == n else len(self.rows)
        return self.rows[rest], self.jobs[rest]


def sweep(
    attack: Attack,
    queue: Queue,
    confirm: Callable[[Tensor, Tensor], Tensor],
    *,
    lanes: int,
    look_every: int = 1,
    tick: Callable[[], None] | None = None,
    note: Callable[[Any, Tensor], None] | None = None,
) -> None:
    """Runs all jobs of a queue; the queue's `still_correct` and `ended` hold the outcome.

    Args:
        attack: attack to run.
        queue: jobs of the attack.
        confirm: takes rows and points that the crafting copy misclassifies, returns which images are broken.
        lanes: size of the batch.
        look_every: steps between looks at what is hit or done; each look synchronises with a GPU.
        tick: called after each look.
        note: called with the state and the lanes that are over, bool [B] on the CPU, before those are dropped.
    """
    state: Any = _more(attack, queue, None, lanes)
    steps = 0
    while state is not None:
        attack.step(state)
        steps += 1
        if steps % look_every:
            continue
        hit = state.hit.cpu().nonzero().squeeze(1)
        if len(hit):
            broken = confirm(state.rows[hit], state.point[hit.to(state.point.device)])
            queue.still_correct[state.rows[hit[broken]]] = False
            state.hit = torch.zeros_like(state.hit)  # those that were not confirmed go on
        done = state.done.cpu()
        if note and done.any():
            note(state, done)
        queue.ended[state.rows[done], state.jobs[done]] = True
        stays = ~done & queue.still_correct[state.rows]
        if not stays.all():
            state = _more(attack, queue, take(state, stays.nonzero().squeeze(1)), lanes)
        if tick:
            tick()


def _more(attack: Attack, queue: Queue, state: Any, lanes: int) -> Any:
    """The lanes with as many new ones as there is room for; None when there are none left."""
    running = 0 if state is None else len(state.rows)
    rows, jobs = queue.next(lanes - running)
    parts = [] if running == 0 else [state]
    if len(rows):
        parts.append(attack.start(rows, jobs))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else join(parts)
