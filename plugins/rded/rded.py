"""RDED: distilled images composed of the real patches that a trained network is most confident of.

P. Sun, B. Shi, D. Yu, T. Lin, On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation
Paradigm, CVPR 2024, arXiv:2312.03526. Written from a description of the released code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.data.augment import stream
from timm_robust.distiller import DistillContext, DistilledClass, Distiller, Patch
from timm_robust.errors import UserError
from timm_robust.threat import SMALL_IMAGE

from .crops import Crops, read_crops
from .options import RdedOptions

POOL = 102
"""Key of the random stream that draws the images to score; distinct from the loaders'."""


def realism(logits: Tensor, number: int) -> Tensor:
    """Realism score: minus the cross-entropy of the label, in float64, so that the most confident crops still differ.

    Args:
        logits: [B, K].
        number: number of the class.

    Returns:
        float64 [B], at most 0.
    """
    return F.log_softmax(logits.double(), dim=1)[:, number]


def ranks(ipc: int, factor: int) -> np.ndarray:
    """Ranks of the patches of each image: rank k * ipc + i is cell k of image i, so that all images are equally good.

    Args:
        ipc: images per class.
        factor: patches along each side of an image.

    Returns:
        int64 [ipc, factor^2], ranks from 0 (the best) by image and cell; cells row by row.
    """
    return np.arange(factor**2) * ipc + np.arange(ipc)[:, None]


def cell_sizes(size: int, factor: int) -> list[int]:
    """Sides of the cells along a side of `size` pixels; the remainder goes to the first cells."""
    return [size // factor + (number < size % factor) for number in range(factor)]


def stitch(patches: np.ndarray, size: int) -> np.ndarray:
    """One image composed of patches, row by row.

    Args:
        patches: uint8 [factor^2, S, S, 3]; resized (bilinear) where a cell is larger.
        size: side of the image in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    factor = round(len(patches) ** 0.5)
    sides = cell_sizes(size, factor)
    rows = []
    for row, height in enumerate(sides):
        cells = patches[row * factor : (row + 1) * factor]
        rows.append(np.concatenate([_scaled(cell, w, height) for cell, w in zip(cells, sides, strict=True)], axis=1))
    return np.concatenate(rows)


def _scaled(patch: np.ndarray, width: int, height: int) -> np.ndarray:
    if patch.shape[:2] == (height, width):
        return patch
    return np.asarray(Image.fromarray(patch).resize((width, height), Image.Resampling.BILINEAR))


class Framed(nn.Module):
    """Wrapper that shows a network patches in the centre of an image of its mean colour.

    Args:
        network: images [N, 3, size, size] in [0, 1] -> logits.
        mean: [1, 3, 1, 1], colour that the network normalises to 0.
        size: side of the network's images in pixels.
    """

    def __init__(self, network: nn.Module, mean: Tensor, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("frame", mean.clone(), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits [N, K] of patches [N, 3, P, P] in [0, 1], P at most the size."""
        side = patches.shape[-1]
        if side == self.size:
            return self.network(patches)
        start = (self.size - side) // 2
        images = self.frame.repeat(len(patches), 1, self.size, self.size).to(memory_format=torch.channels_last)
        images[:, :, start : start + side, start : start + side] = patches
        return self.network(images)


class Best:
    """The best of any number of patches; only those are kept in memory.

    Args:
        count: number of patches to keep.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.scores, self.places = np.empty(0), np.empty(0, np.int64)
        self.boxes, self.pixels = np.empty((0, 4), np.int64), np.empty(0, np.uint8)
        self.seen, self.total, self.crops = 0, 0.0, 0

    def __len__(self) -> int:
        return len(self.scores)

    def add(self, scores: np.ndarray, places: np.ndarray, boxes: np.ndarray, pixels: np.ndarray) -> None:
        """Adds the best crop of each image; the first one of equal scores.

        Args:
            scores: float64 [B, M], of M crops of each image.
            places: int64 [B], positions of the images in the split.
            boxes: int64 [B, M, 4].
            pixels: uint8 [B, M, P, P, 3].
        """
        self.seen, self.total, self.crops = self.seen + len(scores), self.total + scores.sum(), self.crops + scores.size
        every, best = np.arange(len(scores)), scores.argmax(1)
        scores = np.concatenate([self.scores, scores[every, best]])
        places = np.concatenate([self.places, places])
        order = np.lexsort((places, -scores))[: self.count]
        self.scores, self.places = scores[order], places[order]
        self.boxes = np.concatenate([self.boxes, boxes[every, best]])[order]
        chosen = pixels[every, best]
        self.pixels = (np.concatenate([self.pixels, chosen]) if self.pixels.size else chosen)[order]


class RDED(Distiller):
    """Scores random crops of real images, and keeps the best crop of each image and the best of those in each class."""

    options: RdedOptions

    def setup(self, context: DistillContext) -> None:
        super().setup(context)
        options, size = self.options, context.image_size
        self.factor = options.factor or (1 if size <= SMALL_IMAGE else 2)
        if self.factor > size:
            raise UserError(f"option 'factor' is {self.factor}: images of {size} pixels have no room for that many")
        self.patch, self.wanted = size // self.factor, self.factor**2 * context.ipc
        if self.wanted > options.pool:
            raise UserError(
                f"{context.ipc} images of {self.factor**2} patches are the best {self.wanted} of a class, but only "
                f"{options.pool} are scored: raise the option 'pool', or lower ipc or factor"
            )
        counts = np.bincount(context.train.labels, minlength=len(context.class_names))
        if counts.min() < self.wanted:
            few = context.class_names[int(counts.argmin())]
            raise UserError(
                f"class {few!r} has {counts.min()} training images, but {context.ipc} images of {self.factor**2} "
                f"patches need {self.wanted}: lower ipc or the option 'factor'"
            )
        self.framed = Framed(context.observer, context.observer.mean, size).to(context.device).eval()
        # a power of two, which the gradient's sign forgets: tiny gradients do not vanish in half precision
        self.attacker = Attacker(self.framed, context.threat, autocast=context.autocast, gradient_scale=2.0**10)

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def distill(self, classes: Sequence[int]) -> Iterator[DistilledClass]:
        context, options = self.context, self.options
        parts = {number: self._parts(number) for number in classes}
        arriving = read_crops(
            context.train,
            [part for number in classes for part in parts[number]],
            size=self.patch,
            count=options.crops,
            smallest=options.smallest,
            seed=context.seed,
            workers=context.workers,
            device=context.device,
        )
        done, total = 0, sum(len(part) for number in classes for part in parts[number])
        for number in classes:
            best = Best(self.wanted)
            for part in parts[number]:
                with context.timed("reading"):
                    crops = next(arriving)
                with context.timed("scoring"):
                    scores = self.scores(crops, number)
                best.add(scores, crops.places.numpy(), crops.boxes.numpy(), crops.pixels.numpy())
                done += len(part)
                context.progress("scoring crops", done, total)
            yield self._made(number, best)

    def _parts(self, number: int) -> list[np.ndarray]:
        """The images of a class to score, in batches that hold no other class, so that others change nothing."""
        members = np.flatnonzero(self.context.train.labels == number)
        pool = stream(self.context.seed, 0, POOL, number).permutation(members)[: self.options.pool]
        each = max(1, self.context.batch_size // self.options.crops)
        return [pool[start : start + each] for start in range(0, len(pool), each)]

    @torch.no_grad()
    def scores(self, crops: Crops, number: int) -> np.ndarray:
        """Realism of each crop, float64 [B, M]: as it is, and under attack as far as the option says."""
        context, weight = self.context, self.options.robust
        if not len(crops.places):
            return np.empty(crops.boxes.shape[:2])
        pixels = crops.pixels.flatten(0, 1).to(context.device, non_blocking=True).permute(0, 3, 1, 2)
        patches = pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)
        score = torch.zeros(len(patches), dtype=torch.float64, device=context.device)
        if weight < 1:
            score += (1 - weight) * realism(self.attacker.view(patches), number)
        if weight > 0:
            targets = torch.full((len(patches),), number, device=context.device)
            settings = {"alpha": context.threat.eps / 4, "steps": self.options.attack_steps, "random_start": False}
            adversarial = self.attacker(patches, targets, "pgd", **settings)
            score += weight * realism(self.attacker.view(adversarial), number)
        return score.view(crops.boxes.shape[:2]).cpu().numpy()

    def _made(self, number: int, best: Best) -> DistilledClass:
        context = self.context
        if len(best) < self.wanted:
            name = context.class_names[number]
            raise UserError(f"class {name!r} has only {len(best)} readable images of the {self.wanted} that it needs")
        places = ranks(context.ipc, self.factor)
        pixels = np.stack([stitch(best.pixels[cells], context.image_size) for cells in places])
        patches = [
            [
                Patch(context.train.name(int(best.places[rank])), tuple(best.boxes[rank].tolist()), best.scores[rank])
                for rank in cells
            ]
            for cells in places
        ]
        about = {
            "images": best.seen,
            "mean_score_of_crops": float(f"{best.total / best.crops:.6g}"),
            "mean_score_of_kept": float(f"{best.scores.mean():.6g}"),
        }
        return DistilledClass(number, pixels, patches, about)
