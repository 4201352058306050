"""FAB on lanes: F. Croce, M. Hein, arXiv:1907.02044, Algorithm 1, with the settings of AutoAttack.

An iteration asks for the gradient at a point, moves to the decision boundary, and asks whether the new point is
misclassified; if so it is pulled back towards the image. The second question costs no forward of its own where the next
gradient answers it: that forward is spent only on lanes whose last move crossed the boundary, since a gradient at a
point that is pulled back would be wasted. The iterates are the same either way. A misclassified point inside the ball
ends the job.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from timm_robust.evaluation.fast import draws
from timm_robust.evaluation.fast.apgd import noise, norms
from timm_robust.evaluation.fast.lanes import Problem, State
from timm_robust.evaluation.fast.projections import project

STEPS = 100
ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
"""Largest pull towards the image, overshoot, and how much of a crossing is kept."""


@dataclass
class FABState(State):
    """Attributes beside those of `State`:

    at: moves so far. towards: the target class. x: the point. unknown: nobody has asked yet whether it is wrong.
    crosses: whether the last point that was asked about was.
    """

    at: Tensor
    towards: Tensor
    x: Tensor
    unknown: Tensor
    crosses: Tensor


class FAB:
    """Args:
    problem: images and network.
    targeted: towards the class that the clean logits put second, third, ...; else towards the nearest boundary.
    jobs: targets, or restarts: the first begins at the image, the others at random half way to the sphere.
    stream: number of the attack, for its draws.
    steps: moves.
    """

    gradients = True

    def __init__(self, problem: Problem, targeted: bool, jobs: int, stream: int, steps: int) -> None:
        self.problem, self.targeted, self.jobs, self.stream, self.steps = problem, targeted, jobs, stream, steps

    def start(self, rows: Tensor, jobs: Tensor) -> FABState:
        problem, n = self.problem, len(rows)
        shared = problem.lanes(rows, jobs)
        x = clean = shared["clean"]
        if not self.targeted:
            keys = draws.key(problem.seed, problem.numbers[rows], self.stream, jobs).to(clean.device)
            away = problem.threat.eps / 2 * noise(keys, clean, problem.threat.norm)
            x = (clean + away * (jobs > 0).to(clean).view(-1, 1, 1, 1)).clamp(0, 1)
        towards = problem.ranks[rows, (jobs + 1).clamp(max=problem.ranks.shape[1] - 1)].to(clean.device)
        no = torch.zeros(n, dtype=torch.bool, device=clean.device)
        at = torch.zeros(n, dtype=torch.long, device=clean.device)
        return FABState(**shared, point=x, at=at, towards=towards, x=x, unknown=no, crosses=no.clone())

    def step(self, state: FABState) -> None:
        wrong, gap, normal = self._boundary(state)
        with torch.no_grad():
            live = state.at < self.steps
            answered = wrong & state.unknown & live
            back = self._answer(state, answered, state.x)
            moved = self._move(state, gap, normal)
            state.crosses = torch.where(state.unknown & live, wrong, state.crosses)
            state.x = torch.where(live[:, None, None, None], torch.where(_image(answered), back, moved), state.x)
            state.at = state.at + (live & ~answered)
            state.unknown = torch.where(live, ~answered, state.unknown)
            self._ask(state)
            state.done = (state.at >= self.steps) & ~state.unknown

    def _ask(self, state: FABState) -> None:
        """A forward for points that are likely to be misclassified, or that no gradient will be asked for at."""
        asked = (state.unknown & (state.crosses | (state.at >= self.steps))).nonzero().squeeze(1)
        if len(asked) == 0:
            return
        wrong = torch.zeros_like(state.unknown)
        wrong[asked] = self.problem.network.logits(state.x[asked]).argmax(1) != state.targets[asked]
        state.x = torch.where(_image(wrong), self._answer(state, wrong, state.x), state.x)
        state.crosses[asked] = wrong[asked]
        state.unknown[asked] = False

    def _answer(self, state: FABState, wrong: Tensor, x: Tensor) -> Tensor:
        """Notes misclassified points inside the ball; returns all points pulled back."""
        away = x - state.clean
        inside = norms(away, self.problem.threat.norm).flatten() <= self.problem.threat.eps * (1 + 1e-6)
        state.catch(wrong & inside, x)
        return state.clean + away * BETA

    def _boundary(self, state: FABState) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each point is misclassified; the linearised boundary: difference of logits [B] and its gradient."""
        x = state.x.detach().requires_grad_()
        with torch.enable_grad():
            # compiled graphs allow one backward pass only
            logits = self.problem.network(x, compiled=self.targeted)
            right = logits.gather(1, state.targets[:, None])
            wrong = logits.detach().argmax(1) != state.targets
            if self.targeted:
                gap = (logits.gather(1, state.towards[:, None]) - right).squeeze(1)
                return wrong, gap.detach(), torch.autograd.grad(gap.sum(), x)[0]
            gaps = logits - right
            last = gaps.shape[1] - 1
            normals = [torch.autograd.grad(gaps[:, k].sum(), x, retain_graph=k < last)[0] for k in range(last + 1)]
        return wrong, *self._nearest(gaps.detach(), torch.stack(normals, 1), state.targets)

    def _nearest(self, gaps: Tensor, normals: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of the boundaries to all classes the one that is nearest in the dual norm."""
        flat = normals.flatten(2)
        size = flat.abs().sum(2) if self.problem.threat.norm == "Linf" else flat.square().sum(2).sqrt()
        distance = (gaps.abs() / (size + 1e-12)).scatter(1, targets[:, None], float("inf"))
        rows, nearest = torch.arange(len(gaps), device=gaps.device), distance.argmin(1)
        return gaps[rows, nearest], normals[rows, nearest]

    def _move(self, state: FABState, gap: Tensor, normal: Tensor) -> Tensor:
        """Steps of point and image to the boundary, mixed by how far each has to go."""
        clean, x, norm = state.clean, state.x, self.problem.threat.norm
        from_clean = gap + (normal * (clean - x)).sum((1, 2, 3))
        step, length = project(x, normal, gap, norm)
        step_clean, length_clean = project(clean, normal, from_clean, norm)
        length, length_clean = length.clamp(min=1e-8), length_clean.clamp(min=1e-8)
        alpha = (length / (length + length_clean)).clamp(max=ALPHA_MAX)
        return step.mul_(ETA).add_(x).lerp_(step_clean.mul_(ETA).add_(clean), alpha).clamp_(0, 1)


def _image(lanes: Tensor) -> Tensor:
    return lanes[:, None, None, None]
