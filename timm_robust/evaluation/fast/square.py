"""Square Attack on lanes: M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, arXiv:1912.00049, Algorithms 1 to 3.

Settings of AutoAttack: 5000 queries, margin loss, the schedule of p not rescaled. Each lane has its own squares. A
proposal that leaves the image as it is needs no forward: its loss is known, and it counts as a query.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_robust.evaluation.fast import draws
from timm_robust.evaluation.fast.apgd import norms
from timm_robust.evaluation.fast.lanes import Problem, State

QUERIES = 5000
P_INIT = 0.8
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which p halves; the reference's file keeps them for 10,000 queries."""
REDRAWS = 3
"""Proposals in a row that may be found to change nothing before one is evaluated regardless."""


def side(query: int, height: int, width: int, norm: str) -> int:
    """Side of the square at a query, counted from 0, in pixels; odd and at least 3 for L2."""
    p = P_INIT / 2 ** sum(query > at for at in HALVINGS)
    wanted = round(math.sqrt(p * height * width))
    if norm == "Linf":
        return min(max(wanted, 1), height, width)
    return min(max(wanted, 3) | 1, height, width)


@dataclass
class SquareState(State):
    """Attributes beside those of `State`:

    keys: of the lane's draws. query: number of the proposal that `x` is; -1 is the first image. x: the proposal.
    best, margin: the best image so far and its margin, the label's logit less the largest other.
    """

    keys: Tensor
    query: Tensor
    x: Tensor
    best: Tensor
    margin: Tensor


class Square:
    """Args:
    problem: images and network.
    stream: number of the attack, for its draws.
    queries: proposals.
    """

    jobs, gradients = 1, False

    def __init__(self, problem: Problem, stream: int, queries: int) -> None:
        self.problem, self.stream, self.queries = problem, stream, queries
        height, width = problem.images.shape[2:]
        norm = problem.threat.norm
        sides = [side(query, height, width, norm) for query in range(queries)]
        self.sides = torch.tensor(sides, device=problem.network.device)
        patterned = sorted({*sides, max(height // 5, 1)}) if norm == "L2" else []
        self.windows = Windows(patterned, height, width, self.sides.device)

    def start(self, rows: Tensor, jobs: Tensor) -> SquareState:
        problem, n = self.problem, len(rows)
        shared = problem.lanes(rows, jobs)
        clean = shared["clean"]
        keys = draws.key(problem.seed, problem.numbers[rows], self.stream, jobs).to(clean.device)
        first = draws.child(keys, 0)
        if problem.threat.norm == "Linf":
            stripes = draws.signs(first, (clean.shape[1], 1, clean.shape[3]), clean.dtype)
            x = (clean + problem.threat.eps * stripes).clamp(0, 1)
        else:
            tiles = self.windows.tiles(first, clean)
            x = (clean + problem.threat.eps * tiles / (norms(tiles, "L2") + 1e-12)).clamp(0, 1)
        x = x.contiguous(memory_format=problem.network.memory_format)
        query = torch.full((n,), -1, dtype=torch.long, device=clean.device)
        margin = torch.full((n,), float("inf"), dtype=clean.dtype, device=clean.device)
        return SquareState(**shared, point=x, keys=keys, query=query, x=x, best=x, margin=margin)

    @torch.no_grad()
    def step(self, state: SquareState) -> None:
        logits = self.problem.network.logits(state.x)
        right = logits.gather(1, state.targets[:, None]).squeeze(1)
        margin = right - logits.scatter(1, state.targets[:, None], -float("inf")).amax(1)
        over = state.query >= self.queries
        better = (margin < state.margin) & ~over
        state.best = torch.where(better[:, None, None, None], state.x, state.best)
        state.margin = torch.where(better, margin, state.margin)
        state.catch((margin <= 0) & ~over, state.x)
        self._propose(state)
        state.done = state.query >= self.queries

    def _propose(self, state: SquareState) -> None:
        state.query = state.query + 1
        if self.problem.threat.norm == "L2":
            state.x = self._l2(state.clean, state.best, state.keys, state.query)
            return
        low = (state.clean - self.problem.threat.eps).clamp_(min=0)
        high = (state.clean + self.problem.threat.eps).clamp_(max=1)
        state.x = self._linf(state.best, low, high, state.keys, state.query)
        for _ in range(REDRAWS):
            same = (state.x == state.best).flatten(1).all(1) & (state.query < self.queries)
            if same.device.type != "cpu":  # looking which they are would wait for the GPU: once, for all lanes
                state.query = state.query + same
                again = self._linf(state.best, low, high, state.keys, state.query)
                state.x = torch.where(same[:, None, None, None], again, state.x)
                return
            rows = same.nonzero().squeeze(1)
            if len(rows) == 0:
                return
            state.query[rows] += 1
            state.x[rows] = self._linf(state.best[rows], low[rows], high[rows], state.keys[rows], state.query[rows])

    def _linf(self, best: Tensor, low: Tensor, high: Tensor, keys: Tensor, query: Tensor) -> Tensor:
        """Algorithm 2. A pixel of the best image lies within the ball, so 2 eps more or less, clipped, is its rim."""
        height, width = best.shape[2:]
        keys = draws.child(keys, query + 1)
        sides = self.sides[query.clamp(max=self.queries - 1)]
        top = draws.integers(draws.child(keys, 0), (), height - sides)
        left = draws.integers(draws.child(keys, 1), (), width - sides)
        up = draws.signs(draws.child(keys, 2), (best.shape[1], 1, 1)) > 0
        inside = self.windows.inside(top, left, sides)
        return torch.where(inside, torch.where(up, high, low), best)

    def _l2(self, clean: Tensor, best: Tensor, keys: Tensor, query: Tensor) -> Tensor:
        """Algorithm 3: mass moves from one window to another, where it is added to a pattern of eta."""
        channels, height, width = best.shape[1:]
        keys = draws.child(keys, query + 1)
        sides = self.sides[query.clamp(max=self.queries - 1)]
        top, left, top_from, left_from = (
            draws.integers(draws.child(keys, number), (), size - sides)
            for number, size in enumerate((height, width, height, width))
        )
        there, from_there = self.windows.inside(top, left, sides), self.windows.inside(top_from, left_from, sides)
        turned = draws.signs(draws.child(keys, 5), (), best.dtype) > 0
        pattern = self.windows.eta(top, left, sides, turned).to(best.dtype)
        delta = best - clean
        used = (delta * (there | from_there)).square().sum((2, 3), keepdim=True)
        spare = (self.problem.threat.eps**2 - norms(delta, "L2").square()).clamp(min=0) / channels
        old = delta * there
        new = pattern * draws.signs(draws.child(keys, 4), (channels, 1, 1), best.dtype)
        new = new + old / (_per_channel(old) + 1e-12)
        new = new / (_per_channel(new) + 1e-12) * (spare + used).sqrt()
        delta = torch.where(there, new, delta.masked_fill(from_there, 0))
        return (clean + self.problem.threat.eps * delta / (norms(delta, "L2") + 1e-12)).clamp_(0, 1)


def _per_channel(values: Tensor) -> Tensor:
    return values.square().sum((2, 3), keepdim=True).sqrt()


class Windows:
    """Squares anywhere in an image, a batch at a time, and the pattern eta inside those of the given sides."""

    def __init__(self, sides: list[int], height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        self.rows = torch.arange(height, device=device).view(1, 1, height, 1)
        self.columns = torch.arange(width, device=device).view(1, 1, 1, width)
        self.patterns = torch.zeros(len(sides), max(sides, default=0), max(sides, default=0), device=device)
        self.number = torch.zeros(max(height, width) + 1, dtype=torch.long, device=device)
        for number, size in enumerate(sides):
            self.patterns[number, :size, :size] = eta(size)
            self.number[size] = number

    def inside(self, top: Tensor, left: Tensor, sides: Tensor) -> Tensor:
        """Bool [B, 1, H, W] of squares with this top left corner, each [B]."""
        top, left, sides = (part.view(-1, 1, 1, 1) for part in (top, left, sides))
        down, right = self.rows - top, self.columns - left
        return (down >= 0) & (down < sides) & (right >= 0) & (right < sides)

    def eta(self, top: Tensor, left: Tensor, sides: Tensor, turned: Tensor) -> Tensor:
        """[B, 1, H, W]: the pattern at this corner, 0 outside; transposed where `turned`."""
        inside = self.inside(top, left, sides)
        down, right = (self.rows - top.view(-1, 1, 1, 1)), (self.columns - left.view(-1, 1, 1, 1))
        turned = turned.view(-1, 1, 1, 1)
        last = self.patterns.shape[1] - 1
        first = torch.where(turned, right, down).clamp(0, last)
        second = torch.where(turned, down, right).clamp(0, last)
        return self.patterns[self.number[sides].view(-1, 1, 1, 1), first, second] * inside

    def tiles(self, keys: Tensor, like: Tensor) -> Tensor:
        """The first image of L2: a grid of patterns over the image, each with its own sign in each channel."""
        size = max(self.height // 5, 1)
        margin = (self.height - 5 * size) // 2 if self.height >= 5 else 0
        total = torch.zeros_like(like)
        sides = torch.full((len(keys),), size, device=keys.device)
        grid = [(row, column) for row in range(self.height // size) for column in range(self.width // size)]
        for number, (row, column) in enumerate(grid):
            own = draws.child(keys, number)
            top, left = (torch.full_like(sides, margin + place * size) for place in (row, column))
            turned = draws.signs(draws.child(own, 1), (), like.dtype) > 0
            signs = draws.signs(draws.child(own, 0), (like.shape[1], 1, 1), like.dtype)
            total += self.eta(top, left, sides, turned).to(like.dtype) * signs
        return total


def eta(size: int) -> Tensor:
    """The pattern of Algorithm 3, norm 1: a bump above and its negative below, [size, size]."""
    top = size // 2
    pattern = torch.cat([_bump(top, size), -_bump(size - top, size)])
    return (pattern / pattern.norm()).float()


def _bump(rows: int, columns: int) -> Tensor:
    """Rings around the middle, 1 / k^2 summed from each ring outwards, norm 1; equation 2."""
    middle = rows // 2, columns // 2
    rings = max(middle) + 1
    ring = torch.maximum(
        (torch.arange(rows) - middle[0]).abs()[:, None], (torch.arange(columns) - middle[1]).abs()[None, :]
    )
    height = torch.tensor([sum(1 / k**2 for k in range(first + 1, rings + 1)) for first in range(rings + 1)])
    values = height.double()[ring]
    return values / values.norm() if rows else values
