"""RDED's student, which learns the observer's soft labels of the very views that it is trained on.

P. Sun, B. Shi, D. Yu, T. Lin, On the Diversity and Realism of Distilled Dataset, CVPR 2024, arXiv:2312.03526; labels of
regions are those of Z. Shen, E. Xing, A Fast Knowledge Distillation Framework for Visual Recognition, ECCV 2022. The
adversarial loss is that of B. Zi, S. Zhao, X. Ma, Y.-G. Jiang, Revisiting Adversarial Robustness Distillation (RSLAD),
ICCV 2021, from memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from timm_robust_plugins.kd_swa.kd_swa import distillation_loss
from torch import Tensor

from timm_robust.attacks.pgd import GaussianStartPGD
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext

from .options import StudentOptions
from .rded import cell_sizes

MIXUP_ALPHA = 0.8
"""Parameter of the Beta distribution, as in the released code; CutMix draws its fraction uniformly."""


def strip_order(size: int, factor: int, keys: Tensor) -> Tensor:
    """Source row of each row after the strips of an image are reordered.

    Args:
        size: side in pixels.
        factor: number of strips.
        keys: [B, factor], sort keys of the strips, ascending.

    Returns:
        int64 [B, size].
    """
    strips = torch.repeat_interleave(torch.arange(factor), torch.tensor(cell_sizes(size, factor))).to(keys.device)
    place = keys.argsort(1).argsort(1)  # of each strip
    return place[:, strips].argsort(dim=1, stable=True)


def shuffle_patches(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images with their rows and columns permuted.

    Args:
        images: [B, C, S, S].
        rows, columns: int64 [B, S], see `strip_order`.
    """
    every = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def region(size: int, smallest: float, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A region of each image, as drawn by torchvision's RandomResizedCrop: aspect 3/4 to 4/3, first of ten that fits.

    Args:
        size: side of the images in pixels.
        smallest: minimum area as a fraction of the image's; 1: the whole image.
        draws: uniform in [0, 1), [4, 10, B].

    Returns:
        top, left, height and width in pixels, float [B].
    """
    area = size**2 * (smallest + (1 - smallest) * draws[0])
    ratio = torch.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[1])
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width <= size) & (height <= size) & (width > 0) & (height > 0)
    first = fits.float().argmax(0, keepdim=True)
    width, height, down, across = (each.gather(0, first)[0] for each in (width, height, draws[2], draws[3]))
    whole = ~fits.any(0)
    width, height = width.masked_fill(whole, size), height.masked_fill(whole, size)
    top, left = (down * (size - height + 1)).floor(), (across * (size - width + 1)).floor()
    return top, left, height, width


def resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Bilinear enlargement of part of a row to the whole row, as a matrix: [B, size, size], output by input pixel.

    Equal to cropping the part and `F.interpolate(..., align_corners=False)`; parts are never larger than the row, so
    antialiasing does not matter.

    Args:
        start, length: float [B], integers in pixels.
        size: length of the row in pixels.
    """
    out = torch.arange(size, device=start.device)
    source = ((out + 0.5) * (length / size)[:, None] - 0.5).clamp_(min=0)
    source = torch.minimum(source, (length - 1)[:, None]) + start[:, None]
    return (1 - (source[:, :, None] - out).abs()).clamp_(min=0)  # a tent around each place


def crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """A region of each image, resized to the full image.

    Args:
        images: [B, C, S, S].
        top, left, height, width: float [B], see `region`.
    """
    size = images.shape[-1]
    down, across = resampling(top, height, size), resampling(left, width, size)
    return down[:, None] @ images @ across.transpose(1, 2)[:, None]


def cutmix_box(size: int, share: float, centre: tuple[float, float]) -> tuple[int, int, int, int]:
    """The box taken from the partner: top, left, bottom, right in pixels, cut off at the border.

    Args:
        size: side of the images in pixels.
        share: fraction of the image that is kept, in [0, 1].
        centre: centre of the box, each in [0, 1).
    """
    half = int(size * (1 - share) ** 0.5) // 2
    row, column = (int(size * at) for at in centre)
    return max(0, row - half), max(0, column - half), min(size, row + half), min(size, column + half)


def cutmix(images: Tensor, partner: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Each image with a box of its partner pasted in; a new tensor.

    Args:
        images: [B, C, H, W].
        partner: int64 [B], a permutation of the batch.
        box: top, left, bottom, right.
    """
    top, left, bottom, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed


class TowardsOther(GaussianStartPGD):
    """PGD that ascends the divergence of the student's prediction from the teacher's, both at temperature 1."""

    def objective(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """`teacher_logits` [B, K] of the images; `labels` are not used."""
        return distillation_loss(logits, teacher_logits, temperature=1.0)


class Student(Defense):
    """Matches the observer on shuffled, cropped and mixed views, and optionally on adversarial ones."""

    options: StudentOptions
    norms = ("Linf",)

    def __init__(self, options: StudentOptions) -> None:
        super().__init__(options)
        self.adversarial = options.adversarial > 0

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        self.factor = self.options.factor or run.distilled.get("settings", {}).get("factor", 1)
        observer = run.distilled.get("observer", {})
        if self.adversarial and not self.options.observer and observer.get("method") == "standard":
            run.say(
                "the observer is a standard network, whose labels only smooth the student; a robust observer helps more"
            )

    def augment(self, batch: Batch) -> Batch:
        images = batch.images
        count, size, device = len(images), images.shape[-1], images.device
        if self.factor > 1:
            keys = torch.rand(2, count, self.factor, device=device)
            images = shuffle_patches(images, *(strip_order(size, self.factor, key) for key in keys))
            images = crop(images, *region(size, 1 / self.factor, torch.rand(4, 10, count, device=device)))
        if self.options.mix != "none":
            partner = torch.randperm(count, device=device)
            share, *centre = torch.rand(3).tolist()  # on the CPU, so that nothing waits for the device
            if self.options.mix == "cutmix":
                images = cutmix(images, partner, cutmix_box(size, share, (centre[0], centre[1])))
            else:
                share = torch.distributions.Beta(MIXUP_ALPHA, MIXUP_ALPHA).sample().item()
                images = share * images + (1 - share) * images[partner]
        layout = torch.channels_last if batch.images.is_contiguous(memory_format=torch.channels_last) else None
        images = images.clamp(0, 1).contiguous(memory_format=layout or torch.contiguous_format)
        return replace(batch, images=images, view=None)

    def perturb(self, batch: Batch) -> Perturbed:
        with torch.no_grad(), self.run.attacker.autocast():
            labels = self.run.teachers["observer"](batch.images)
        if not self.adversarial:
            return Perturbed(batch.images, {"labels": labels})
        options = self.options
        settings = {"steps": options.steps, "alpha": self.times_eps(options.step_ratio), "bn": options.attack_bn}
        images = self.attack(batch.images, batch.targets, TowardsOther, labels, **settings)
        return Perturbed(images, {"labels": labels})

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        weight, labels = self.options.adversarial, perturbed.extras["labels"].float()
        terms = {}
        logits = torch.empty(0)
        if weight < 1:
            logits = self.run.model(batch.images)
            terms["clean_loss"] = self._distance(logits, labels)
        if weight > 0:
            logits = self.run.model(perturbed.images)
            terms["adversarial_loss"] = self._distance(logits, labels)
        loss = (1 - weight) * terms.get("clean_loss", 0.0) + weight * terms.get("adversarial_loss", 0.0)
        told = {name: value.detach() for name, value in terms.items()} if self.adversarial else {}
        return {"loss": loss, "logits": logits, **told}

    def _distance(self, logits: Tensor, labels: Tensor) -> Tensor:
        return distillation_loss(logits.float(), labels, temperature=self.options.temperature)
