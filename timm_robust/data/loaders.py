"""Batches on the device: gathered there from resident pixels, or streamed from worker processes.

Order and augmentation depend on (seed, epoch) alone, so a run gives the same batches after a resume, with any number of
workers, and, taken together, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from timm_robust.data import idbh
from timm_robust.data.augment import (
    BATCHED,
    CORNERS,
    FIXED,
    ORDER,
    below,
    blank,
    crop_and_flip,
    crop_table,
    cutout_boxes,
    on_device,
    pad_images,
    scaled_pad,
    stream,
    uniforms,
)
from timm_robust.data.augmentations import AUGMENTATIONS, CROPPED, FLIPPED
from timm_robust.data.batch import Batch, View
from timm_robust.data.bundle import Extra, Split
from timm_robust.data.images import ChainedImages, SomeImages
from timm_robust.data.mixing import count_steps, extra_count, mixed_order
from timm_robust.data.streaming import AugmentSettings, Stream
from timm_robust.errors import UserError, unknown


class TrainLoader(Protocol):
    """Training batches of one process, epoch by epoch.

    Attributes:
        pad: pixels added on each side before cropping, after scaling to the image size.
        frame_size: side of the source frame in which `View` coordinates count; None if each image has its own, or if
            pixels also move in ways that a view does not describe.
    """

    pad: int
    frame_size: int | None

    def __len__(self) -> int:
        """Batches per epoch, the same on every process."""
        ...

    def epoch(self, epoch: int) -> Iterator[Batch]: ...


class EvalLoader(Protocol):
    """Batches in the order of the split, without augmentation; iterable any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def make_train_loader(
    split: Split,
    *,
    batch_size: int,
    augment: str = "crop-flip",
    pad: int = 4,
    pad_mode: str = "zeros",
    cutout_size: float = 0.4375,
    seed: int = 0,
    device: torch.device | str = "cpu",
    channels_last: bool = True,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    extra: Extra | None = None,
) -> TrainLoader:
    """Augmented batches for training.

    Args:
        split: training split, usually `DataBundle.train`.
        batch_size: images per batch and process. A last batch of one image per process is left out (BatchNorm).
        augment: one of `AUGMENTATIONS`: "crop-flip", "crop", "flip", "none"; "cutout" (crop-flip, then a square of
            zeros); "idbh-weak" (or "idbh"), "idbh-strong", "idbh-svhn"; "inception" (a random part of the stored image,
            scaled).
        pad: padding before the random crop, in pixels of 32-pixel images; scales with the image size.
        pad_mode: content of the padding, "zeros" or "reflect".
        cutout_size: side of cutout's square, as a fraction of the image's.
        seed: random seed of order and augmentation, together with the epoch.
        device: device of the batches; resident pixels must be there.
        channels_last: memory format of the images.
        workers: number of processes that decode streamed images; default: one per core, at most 8. 0: in this process.
        shard: (rank, number of processes).
        extra: extra images, usually `DataBundle.extra`, which fill their share of each batch, after the real ones.

    Raises:
        UserError: unknown augmentation, fewer than two images per process, or batches too small for the extra's share.
    """
    if augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    if pad_mode not in ("zeros", "reflect"):
        raise unknown("pad_mode", pad_mode, ("zeros", "reflect"))
    pad = scaled_pad(pad, split.image_size) if augment in CROPPED else 0
    if pad_mode == "reflect" and pad >= split.image_size:
        raise UserError(f"pad is {pad} pixels at size {split.image_size}: expected less than the size, to reflect")
    cutout = max(1, round(cutout_size * split.image_size)) if augment == "cutout" and cutout_size else 0
    augmentation = AugmentSettings(augment, pad, pad_mode, seed, cutout)
    kind = ResidentTrainLoader if split.resident and augment != "inception" else StreamTrainLoader
    return kind(split, augmentation, batch_size, torch.device(device), channels_last, shard, workers, extra)


def make_eval_loader(
    split: Split,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    n_examples: int | None = None,
    channels_last: bool = False,
    workers: int | None = None,
) -> EvalLoader:
    """Batches of the first `n_examples` images (default: all), in the order of the split.

    Streamed images that cannot be read are warned about and left out; `Batch.index` says which remain.

    Raises:
        UserError: more images asked for than the split has.
    """
    n = len(split) if n_examples is None else n_examples
    _check_count(n, split)
    return _Evaluation(split, n, batch_size, torch.device(device), channels_last, workers)


def as_tensors(split: Split, n: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `n` images (default: all) as tensors, as AutoAttack takes them.

    Returns:
        images, float32 [n, C, H, W] in [0, 1], contiguous, and labels, int64 [n]; on the device of resident pixels,
        else on the CPU. Unreadable streamed images are left out.

    Raises:
        UserError: more images asked for than the split has.
    """
    batches = list(make_eval_loader(split, batch_size=256, n_examples=n, device=_home(split)))
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])


def sample(split: Split, n: int, *, seed: int = 0, device: torch.device | str = "cpu") -> Batch:
    """A random sample of a split, without augmentation; the same for equal seeds.

    Args:
        n: number of images; all if the split has fewer.
    """
    part, _ = some(split, n, seed)
    return next(iter(make_eval_loader(part, batch_size=len(part), device=device)))


def some(split: Split, n: int, seed: int = 0) -> tuple[Split, np.ndarray]:
    """The part of a split that `sample` takes, and its positions there."""
    positions = np.sort(stream(seed, 0, FIXED).permutation(len(split))[:n])
    pixels = None if split.pixels is None else split.pixels[torch.from_numpy(positions).to(split.pixels.device)]
    true = None if split.true_labels is None else split.true_labels[positions]
    images = SomeImages(split.images, positions)
    return Split(images, split.labels[positions], split.image_size, pixels, true), positions


def _home(split: Split) -> torch.device:
    return split.pixels.device if split.pixels is not None else torch.device("cpu")


def _check_count(n: int, split: Split) -> None:
    if not 1 <= n <= len(split):
        raise UserError(f"{n} examples are wanted, but the split has {len(split)}: expected 1 to {len(split)}")


def to_float(pixels: Tensor, channels_last: bool) -> Tensor:
    """uint8 [B, C, H, W] in 0..255 -> float32 in [0, 1], channels last or contiguous."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return pixels.to(torch.float32, memory_format=layout).div_(255)


def count_batches(n: int, batch_size: int, world: int) -> int:
    """Batches that each of `world` processes takes from `n` images."""
    full, rest = divmod(n, batch_size * world)
    return full + (-(-rest // world) >= 2)


def epoch_order(n: int, batch_size: int, seed: int, epoch: int, shard: tuple[int, int]) -> list[np.ndarray]:
    """Positions of one process's batches in an epoch.

    All processes share one permutation and take their part of each global batch. Only the last one may be short; it is
    filled up from the permutation's start, so that all processes get equally many images (fewer than `world` come
    twice).
    """
    rank, world = shard
    order = stream(seed, epoch, ORDER).permutation(n)
    together, batches = batch_size * world, []
    for number in range(count_batches(n, batch_size, world)):
        part = order[number * together : (number + 1) * together]
        share = -(-len(part) // world)
        if len(part) < share * world:
            part = np.concatenate([part, order[: share * world - len(part)]])
        batches.append(part[rank * share : (rank + 1) * share])
    return batches


class _TrainBase:
    """Base of both training loaders: settings, order, and augmentation of whole batches."""

    def __init__(
        self,
        split: Split,
        augmentation: AugmentSettings,
        batch_size: int,
        device: torch.device,
        channels_last: bool,
        shard: tuple[int, int],
        workers: int | None,
        extra: Extra | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size is {batch_size}: expected at least 1")
        self.split, self.augmentation, self.batch_size = split, augmentation, batch_size
        self.device, self.channels_last, self.shard, self.workers = device, channels_last, shard, workers
        self.extra, self.real = extra, batch_size - extra_count(batch_size, extra.share) if extra else batch_size
        self.pad = augmentation.pad
        self._variant = idbh.VARIANTS.get(augmentation.augment)
        framed = augmentation.augment != "inception" and self._variant is None
        self.frame_size = split.image_size + 2 * augmentation.pad if framed else None
        if not len(self):
            raise UserError(f"training has {len(split)} images for {shard[1]} processes: expected two for each")

    def __len__(self) -> int:
        count = count_steps if self.extra else count_batches
        return count(len(self.split), self.batch_size, self.shard[1])

    def _order(self, epoch: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each batch the positions of its samples, and the turns that key their augmentation."""
        if self.extra is None:
            parts = epoch_order(len(self.split), self.batch_size, self.augmentation.seed, epoch, self.shard)
            return parts, [np.full_like(part, epoch) for part in parts]
        sizes = len(self.split), len(self.extra.split), self.batch_size
        return mixed_order(*sizes, self.extra.share, self.augmentation.seed, epoch, self.shard)

    def _finish(self, pixels: Tensor, view: View, index: np.ndarray, turn: np.ndarray) -> tuple[Tensor, View]:
        """Augmentation of whole batches on the device, uint8, after the crop."""
        seed, cutout, size = self.augmentation.seed, self.augmentation.cutout, self.split.image_size
        if cutout:
            boxes = cutout_boxes(uniforms(seed, BATCHED, turn, index, 2), cutout, size)
            return blank(pixels, on_device(torch.from_numpy(boxes), self.device)), view
        if self._variant:
            plan = idbh.make_plan(self._variant, size, uniforms(seed, BATCHED, turn, index, idbh.DRAWS))
            flip = on_device(torch.from_numpy(plan.flip), self.device)
            return idbh.apply(plan, self._variant, pixels), replace(view, flip=flip)
        return pixels, view


class ResidentTrainLoader(_TrainBase):
    """Small images: padded once on the device, where each batch is one gather without synchronisation.

    Extra images come from the host, batch by batch.
    """

    def __init__(self, split: Split, augmentation: AugmentSettings, *settings: object) -> None:
        super().__init__(split, augmentation, *settings)  # type: ignore[arg-type]
        if split.pixels is None:
            raise TypeError("the split streams")
        self._pixels = pad_images(split.pixels.to(self.device), augmentation.pad, augmentation.pad_mode)
        self._stored = self.extra.split.pixels if self.extra else None
        labels = np.concatenate([split.labels, self.extra.split.labels]) if self.extra else split.labels
        self._labels = torch.from_numpy(labels).to(self.device)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of an epoch; their order and crops go to the device once, at the start."""
        batches, turns = self._order(epoch)
        order = np.concatenate(batches)
        table = self._corners(order, np.concatenate(turns), epoch)
        indices, top, left, mirror = (torch.from_numpy(a).to(self.device) for a in (order, *table))
        side = torch.full_like(indices, self.split.image_size)
        views = View(top, left, side, side, mirror)
        start = 0
        for samples, turn in zip(batches, turns, strict=True):
            part = slice(start, start + len(samples))
            start += len(samples)
            index, view = indices[part], views[part]
            pixels, view = self._finish(self._crops(samples, index, view), view, samples, turn)
            yield Batch(to_float(pixels, self.channels_last), self._labels[index], index, view)

    def _corners(self, order: np.ndarray, turn: np.ndarray, epoch: int) -> tuple[np.ndarray, ...]:
        """Crops and flips of an epoch's samples, in this order."""
        flip, seed = self.augmentation.augment in FLIPPED, self.augmentation.seed
        if self.extra is None:
            return tuple(column[order] for column in crop_table(len(self.split), self.pad, flip, seed, epoch))
        draws = uniforms(seed, CORNERS, turn, order, 3)
        return *below(draws[:2], 2 * self.pad + 1), (draws[2] < 0.5) & flip

    def _crops(self, samples: np.ndarray, index: Tensor, view: View) -> Tensor:
        """Cropped images of one batch, uint8 [B, C, size, size]."""
        size, real = self.split.image_size, self.real
        if self._stored is None:
            return crop_and_flip(self._pixels, index, view, size)
        own = self._stored.index_select(0, torch.from_numpy(samples[real:] - len(self.split)))
        framed = pad_images(on_device(own, self.device), self.pad, self.augmentation.pad_mode)
        every = torch.arange(len(own), device=self.device)
        crops = [crop_and_flip(self._pixels, index[:real], view[:real], size)]
        return torch.cat([*crops, crop_and_flip(framed, every, view[real:], size)])


class StreamTrainLoader(_TrainBase):
    """Large images: decoded and cropped by worker processes, sent as uint8, converted to float on the device."""

    def __init__(self, split: Split, augmentation: AugmentSettings, *settings: object) -> None:
        super().__init__(split, augmentation, *settings)  # type: ignore[arg-type]
        images, labels = split.images, split.labels
        if self.extra:
            images = ChainedImages(images, self.extra.split.images)
            labels = np.concatenate([labels, self.extra.split.labels])
        self._stream = Stream(images, labels, split.image_size, augmentation, self.workers, self.device)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of an epoch; the next readable image takes the place of an unreadable one."""
        parts, turns = self._order(epoch)
        for batch, turn in zip(self._stream.batches(parts, turns), turns, strict=True):
            images, targets, index, view = batch.to(self.device)
            images, view = self._finish(images, view, batch.numbers[:, 0].numpy(), turn)
            yield Batch(to_float(images, self.channels_last), targets, index, view)


class _Evaluation:
    def __init__(
        self, split: Split, n: int, batch_size: int, device: torch.device, channels_last: bool, workers: int | None
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size is {batch_size}: expected at least 1")
        self.split, self.n, self.batch_size = split, n, batch_size
        self.device, self.channels_last, self.workers = device, channels_last, workers

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        parts = [np.arange(start, min(start + self.batch_size, self.n)) for start in range(0, self.n, self.batch_size)]
        return self._resident(parts) if self.split.resident else self._streamed(parts)

    def _resident(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        pixels, labels = self.split.pixels, torch.from_numpy(self.split.labels)
        if pixels is None:
            raise TypeError("the split streams")
        for part in parts:
            here = slice(int(part[0]), int(part[-1]) + 1)
            images = to_float(pixels[here].to(self.device).permute(0, 3, 1, 2), self.channels_last)
            yield Batch(images, labels[here].to(self.device), torch.from_numpy(part).to(self.device))

    def _streamed(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        workers = len(parts) - 1 if self.workers is None and len(parts) <= 8 else self.workers
        stream = Stream(self.split.images, self.split.labels, self.split.image_size, None, workers, self.device)
        for batch in stream.batches(parts):
            images, targets, index, _ = batch.to(self.device)
            if len(targets):
                yield Batch(to_float(images, self.channels_last), targets, index)
