"""Per-sample state of a method, kept across epochs: perturbations, norms, labels.

    table = SampleTable(run, "perturbations", shape=(3, 40, 40), dtype=torch.float16)
    values = table[batch.index]              # in `perturb` or `loss`; on the run's device
    table[batch.index] = new                 # in `commit` only
    table.merge()                            # in `on_epoch_end`: all processes agree again

Rows are numbered by `Batch.index`. Each process writes the rows of its own batches; `merge` then gives all of them the
newest value of each. `state_dict` holds the values, so a resumed run continues with them.

`take_window` and `put_window` carry a perturbation along with its image through crop and flip, and back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from timm_robust.data.batch import View
    from timm_robust.defense import TrainContext

PLACES = ("auto", "device", "host")
"""Where a table may be stored; `auto`: on the run's device if it fits into a quarter of the free memory."""

CHUNK = 2**26
"""Number of values that processes exchange at once."""


class SampleTable:
    """One value of a fixed shape per training sample; reports its size before training starts.

    Args:
        run: context of the run, with the number of samples and the device.
        what: name of the values, for the line that reports their memory.
        shape: shape of one sample's value, () for a number.
        dtype: stored type; float16 halves memory and checkpoints, and keeps three digits.
        place: one of `PLACES`.
    """

    def __init__(
        self,
        run: TrainContext,
        what: str,
        shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
        place: str = "auto",
    ) -> None:
        self.device = run.device
        size = run.num_train * math.prod(shape) * dtype.itemsize
        home = (
            torch.device("cpu") if place == "host" or (place == "auto" and not _fits(size, run.device)) else run.device
        )
        self.values = torch.zeros(run.num_train, *shape, dtype=dtype, device=home)
        self._written = torch.zeros(run.num_train, dtype=torch.bool, device=home)
        run.say(f"{what} of {run.num_train} samples take {_readable(size)} on {home}, and in last/state.pt")

    def __getitem__(self, index: Tensor) -> Tensor:
        """The values of some samples, float32 on the run's device.

        Args:
            index: int64 [B], as in `Batch.index`.
        """
        return self.values[index.to(self.values.device)].to(self.device, torch.float32, non_blocking=True)

    def __setitem__(self, index: Tensor, values: Tensor) -> None:
        """Stores values; if a sample occurs twice, the last one is kept.

        Args:
            index: int64 [B].
            values: [B, *shape].
        """
        last = last_copies(index)
        index = index.to(self.values.device)
        self.values[index] = values.detach()[last.to(values.device)].to(self.values.device, self.values.dtype)
        self._written[index] = True

    def fill(self, value: float) -> None:
        """Sets every sample's value."""
        self.values.fill_(value)

    def fill_uniform(self, bound: float, seed: int, *, corners: bool = False) -> None:
        """Draws every value from [-bound, bound], or from its two ends; the same on every process.

        Args:
            bound: largest absolute value.
            seed: random seed; the global generators stay untouched.
            corners: draw -bound or +bound, with equal probability.
        """
        generator = torch.Generator().manual_seed(seed)
        for rows in self.values.split(max(1, CHUNK // max(1, self.values[0].numel()))):
            draws = torch.rand(rows.shape, generator=generator)
            draws = (draws < 0.5).float().mul_(2).sub_(1) if corners else draws.mul_(2).sub_(1)
            rows.copy_(draws.mul_(bound))

    def merge(self) -> None:
        """Gives every process the newest value of each sample; of a sample that two processes had, the first one's."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            rank, world = dist.get_rank(), dist.get_world_size()
            owner = torch.where(self._written, rank, world).to(self.device)
            dist.all_reduce(owner, op=dist.ReduceOp.MIN)
            owner = owner.to(self.values.device)
            each = max(1, CHUNK // max(1, self.values[0].numel()))
            for rows, owners in zip(self.values.split(each), owner.split(each), strict=True):
                mine = (owners == rank) | ((owners == world) & (rank == 0))
                part = torch.where(mine.view(-1, *[1] * (rows.ndim - 1)), rows, torch.zeros_like(rows)).to(self.device)
                dist.all_reduce(part)
                rows.copy_(part)
        self._written.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The values, on the CPU."""
        return {"values": self.values.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the values."""
        self.values.copy_(state["values"])


def last_copies(index: Tensor) -> Tensor:
    """For each position the last one with the same sample: on a GPU a plain assignment keeps any of the copies.

    Args:
        index: int64 [B].
    """
    same = (index[:, None] == index).flip(1).byte()
    return len(index) - 1 - same.argmax(1)  # argmax gives the first of equals


def _fits(size: int, device: torch.device) -> bool:
    return device.type != "cuda" or 4 * size <= torch.cuda.mem_get_info(device)[0]


def _readable(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.3g} GiB"


def _places(view: View, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Batch, row and column of each pixel of each window, broadcast to [B, size, size]."""
    steps = torch.arange(size, device=view.top.device)
    rows = view.top[:, None] + steps
    cols = view.left[:, None] + torch.where(view.flip[:, None], size - 1 - steps, steps)
    return torch.arange(len(rows), device=rows.device)[:, None, None], rows[:, :, None], cols[:, None, :]


def take_window(frames: Tensor, view: View, size: int) -> Tensor:
    """Each sample's crop of values on the source frame, flipped as its image.

    Args:
        frames: [B, C, F, F], on the frame in which `view` counts.
        view: view of the batch.
        size: side of the crop in pixels.

    Returns:
        [B, C, size, size].
    """
    sample, rows, cols = _places(view, size)
    return frames.permute(0, 2, 3, 1)[sample, rows, cols].permute(0, 3, 1, 2)


def put_window(frames: Tensor, view: View, window: Tensor) -> Tensor:
    """Inverse of `take_window`: the frames with `window` at its place, flipped back; the rest does not change.

    Args:
        frames: [B, C, F, F].
        view: view of the batch.
        window: [B, C, size, size].
    """
    sample, rows, cols = _places(view, window.shape[-1])
    out = frames.permute(0, 2, 3, 1).clone()
    out[sample, rows, cols] = window.permute(0, 2, 3, 1).to(out.dtype)
    return out.permute(0, 3, 1, 2)


def enlarge(stored: Tensor, size: int) -> Tensor:
    """Values stored at low resolution, interpolated bilinearly to `size` pixels."""
    return stored if stored.shape[-1] == size else F.interpolate(stored, size, mode="bilinear", align_corners=False)


def reduce(frames: Tensor, size: int) -> Tensor:
    """Values at low resolution: the mean over the pixels that each stored one covers."""
    return frames if frames.shape[-1] == size else F.adaptive_avg_pool2d(frames, size)
