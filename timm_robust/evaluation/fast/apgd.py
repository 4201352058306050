"""APGD on lanes: F. Croce, M. Hein, arXiv:2003.01690, Algorithm 1, with the settings of AutoAttack.

Each lane has its own iteration, so new images join a running batch. A lane ends at the first misclassified point: the
loss that it would yet have reached is of no use to a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_robust.evaluation.fast import draws
from timm_robust.evaluation.fast.lanes import Problem, State

STEPS = 100
MOMENTUM = 0.75
RHO = 0.75
"""A step shorter than before is taken where the loss rose in at most this share of the steps since the last check."""
CLOSE = 0.05
"""How near the boundary, in units of the DLR loss or of the label's probability, bf16 may miss what float32 finds."""


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are checked, counted from 1; Section 3.2 in whole numbers of steps."""
    window, shrink, least = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    at, found = window, []
    while at <= steps:
        found.append(at)
        window = max(window - shrink, least)
        at += window
    return found


def dlr(logits: Tensor, targets: Tensor) -> Tensor:
    """Difference of logits ratio, equation 6: scale and shift of the logits leave it as it is; [B], K >= 3."""
    top = logits.topk(3, dim=1).values
    right = logits.gather(1, targets[:, None]).squeeze(1)
    others = torch.where(logits.argmax(1) == targets, top[:, 1], top[:, 0])
    return (others - right) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, targets: Tensor, towards: Tensor) -> Tensor:
    """The same towards one class, equation 7; [B], K >= 4."""
    top = logits.topk(4, dim=1).values
    right, other = (logits.gather(1, label[:, None]).squeeze(1) for label in (targets, towards))
    return (other - right) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


@dataclass
class APGDState(State):
    """Attributes beside those of `State`:

    at: evaluations so far, on the CPU. towards: the target class. x, x_old: the point and the one before it. best,
    best_grad, best_loss: of the highest loss. step: [B, 1, 1, 1]. loss: the last one. rises: steps since the last check
    in which it rose. checked_loss: the highest at the last check. reduced: whether that check halved the step.
    """

    at: Tensor
    towards: Tensor
    x: Tensor
    x_old: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    step: Tensor
    loss: Tensor
    rises: Tensor
    checked_loss: Tensor
    reduced: Tensor


class APGD:
    """Args:
    problem: images and network.
    loss: `ce`, `dlr` or `dlr-targeted`.
    jobs: restarts, or targets: the class that the clean logits put second, third, ...
    stream: number of the attack, for its draws.
    steps: gradient steps.
    """

    gradients = True

    def __init__(self, problem: Problem, loss: str, jobs: int, stream: int, steps: int) -> None:
        self.problem, self.loss, self.jobs, self.stream, self.steps = problem, loss, jobs, stream, steps
        self.window = torch.zeros(steps + 2, dtype=torch.long)
        last = 0
        for at in checkpoints(steps):
            self.window[at], last = at - last, at
        self.move: Callable[..., Tensor] = linf_move if problem.threat.norm == "Linf" else l2_move

    def start(self, rows: Tensor, jobs: Tensor) -> APGDState:
        problem, n = self.problem, len(rows)
        shared = problem.lanes(rows, jobs)
        clean = shared["clean"]
        keys = draws.key(problem.seed, problem.numbers[rows], self.stream, jobs).to(clean.device)
        x = (clean + problem.threat.eps * noise(keys, clean, problem.threat.norm)).clamp(0, 1)
        towards = problem.ranks[rows, (jobs + 1).clamp(max=problem.ranks.shape[1] - 1)].to(clean.device)
        zero = torch.zeros(n, dtype=clean.dtype, device=clean.device)
        return APGDState(
            **shared,
            point=x,
            at=torch.zeros(n, dtype=torch.long),
            towards=towards,
            x=x,
            x_old=x,
            best=x,
            best_grad=torch.zeros_like(x),
            best_loss=zero - float("inf"),
            step=(zero + 2 * problem.threat.eps).view(-1, 1, 1, 1),
            loss=zero,  # the first step counts as a rise where its loss is above 0, as in the reference
            rises=zero,
            checked_loss=zero,
            reduced=torch.ones(n, dtype=torch.bool, device=clean.device),
        )

    def _gradient(self, state: APGDState) -> tuple[Tensor, Tensor, Tensor]:
        x = state.x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.problem.network(x)
            if self.loss == "ce":
                loss = F.cross_entropy(logits, state.targets, reduction="none")
            elif self.loss == "dlr":
                loss = dlr(logits, state.targets)
            else:
                loss = dlr_targeted(logits, state.targets, state.towards)
            grad = torch.autograd.grad(loss.sum(), x)[0]
        return logits.detach(), loss.detach(), grad

    def step(self, state: APGDState) -> None:
        logits, loss, grad = self._gradient(state)
        with torch.no_grad():
            device = state.x.device
            wrong = logits.argmax(1) != state.targets
            first, over = state.at == 0, state.at > self.steps
            if over.any():
                wrong &= ~over.to(device)  # a lane that nobody has looked at since it ended
            state.catch(wrong, state.x)
            self._remember(state, loss, grad, first.to(device))
            window = self.window[state.at.clamp(max=self.steps)]
            x = state.x
            if (window > 0).any():
                x, grad = self._check(state, x, grad, window.to(device))
            momentum = torch.where(first, 1.0, MOMENTUM).to(x).view(-1, 1, 1, 1)
            state.x = self.move(x, state.x_old, grad, state.step, momentum, state.clean, self.problem.threat.eps)
            state.x_old = x
            state.at = state.at + 1
            state.done = (state.at > self.steps).to(device)

    def close(self, state: APGDState) -> Tensor:
        """Whether the best point of each lane came close to the boundary, bool [B]."""
        if self.loss == "ce":
            return (-state.best_loss).exp() < 0.5 + CLOSE
        return state.best_loss > -CLOSE

    def _remember(self, state: APGDState, loss: Tensor, grad: Tensor, first: Tensor) -> None:
        better = loss > state.best_loss
        image = better[:, None, None, None]
        state.best = torch.where(image, state.x, state.best)
        state.best_grad = torch.where(image, grad, state.best_grad)
        state.best_loss = torch.where(better, loss, state.best_loss)
        state.rises = state.rises + ((loss > state.loss) & ~first)
        state.loss = torch.where(first, state.loss, loss)
        state.checked_loss = torch.where(first, loss, state.checked_loss)

    def _check(self, state: APGDState, x: Tensor, grad: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """Section 3.2: where the loss oscillates or no longer improves, halve the step, go back to the best point."""
        now = window > 0
        oscillates = state.rises <= RHO * window
        stuck = ~state.reduced & (state.checked_loss >= state.best_loss)
        halve = now & (oscillates | stuck)
        state.reduced = torch.where(now, halve, state.reduced)
        state.checked_loss = torch.where(now, state.best_loss, state.checked_loss)
        state.rises = state.rises.masked_fill(now, 0)
        image = halve[:, None, None, None]
        state.step = torch.where(image, state.step / 2, state.step)
        return torch.where(image, state.best, x), torch.where(image, state.best_grad, grad)


def norms(x: Tensor, norm: str) -> Tensor:
    """Norm of each image, [B, 1, 1, 1]."""
    if norm == "Linf":
        return x.abs().amax((1, 2, 3), keepdim=True)
    return x.square().sum((1, 2, 3), keepdim=True).sqrt()


def noise(keys: Tensor, like: Tensor, norm: str) -> Tensor:
    """A random direction of norm 1 for each key: uniform (Linf) or normal (L2) numbers, scaled to the sphere."""
    shape = tuple(like.shape[1:])
    raw = 2 * draws.uniform(keys, shape, like.dtype) - 1 if norm == "Linf" else draws.normal(keys, shape, like.dtype)
    return (raw / (norms(raw, norm) + 1e-12)).to(memory_format=torch.channels_last)


def linf_move(
    x: Tensor, old: Tensor, grad: Tensor, step: Tensor, momentum: Tensor, clean: Tensor, eps: float
) -> Tensor:
    """A signed step with momentum, both projected to the ball and to [0, 1]."""
    low, high = (clean - eps).clamp_(min=0), (clean + eps).clamp_(max=1)
    ahead = grad.sign().mul_(step).add_(x).clamp_(low, high)
    drift = (x + x).sub_(old)  # x + (x - old), where momentum alone would go
    return drift.lerp_(ahead, momentum).clamp_(low, high)


def l2_move(x: Tensor, old: Tensor, grad: Tensor, step: Tensor, momentum: Tensor, clean: Tensor, eps: float) -> Tensor:
    """The same along the normalised gradient."""

    def project(point: Tensor) -> Tensor:
        delta = point - clean
        size = norms(delta, "L2")
        return (clean + delta / (size + 1e-12) * size.clamp(max=eps)).clamp_(0, 1)

    ahead = project(x + step * grad / (norms(grad, "L2") + 1e-12))
    return project((2 * x - old).lerp(ahead, momentum))
