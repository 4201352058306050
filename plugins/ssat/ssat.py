"""Self-supervised adversarial training, and the pre-training of its encoder.

K. Chen, Y. Chen, H. Zhou, X. Mao, Y. Li, Y. He, H. Xue, W. Zhang, N. Yu, Self-supervised Adversarial Training, ICASSP
2020, arXiv:1911.06470. Written from a description of the released notebooks; the attack was never released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.errors import UserError
from timm_robust.models.pixel_model import PixelModel
from timm_robust.runs.checkpoint import read_trained
from timm_robust.sample_table import SampleTable

from .information import Features, information_loss
from .knn import Neighbours
from .options import PretrainingOptions, SsatOptions
from .pgd_knn import PGDkNN
from .representation import SIDES, Encoder, Projections, find_layout, recorded
from .views import random_view


class Informed(Defense):
    """Base of both phases: maximises the information between the features of two views, in one forward pass.

    The classifier is trained on detached features of labelled images: a linear probe.
    """

    reads_features = True

    def auxiliary_model(self, build: Callable[..., nn.Module]) -> nn.Module:
        return Projections(find_layout(build()))

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        self.layout = find_layout(run.unwrapped_model)

    def places(self, batch: Batch) -> Tensor:
        """Random place on the coarsest map for each view and image, int64 [2, B]."""
        return torch.randint(SIDES[0] ** 2, (2, len(batch)), device=batch.images.device)

    def represent(self, images: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Features, Features]:
        """Logits of the images, and the features of two views among them.

        Args:
            images: [N, C, H, W].
            one, other: int64 [B], positions of the two views in `images`.
        """
        with recorded(self.run.unwrapped_model, [layer.name for layer in self.layout.maps]) as seen:
            logits = self.run.model(images)
        both = torch.cat([one, other])
        maps = self.run.auxiliary_model([found[both] for found in self.layout.pooled(seen)])
        parts = zip(*(found.split(len(one)) for found in (seen.vector[both], *maps)), strict=True)
        first, second = (Features(vector, tuple(rest)) for vector, *rest in parts)
        return logits, first, second


class Pretraining(Informed):
    """Two augmented views of each image; no attack, and labels for the linear probe only."""

    options: PretrainingOptions
    adversarial = False

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        options, small = self.options, run.image_size <= 32
        self.view = {
            "translate": round(options.translate * run.image_size / 32),
            "min_scale": options.min_scale if options.min_scale is not None else (1.0 if small else 0.3),
            "jitter": options.jitter if options.jitter is not None else (0.4 if small else 0.0),
            "grey": options.grey if options.grey is not None else (0.25 if small else 0.0),
        }

    def perturb(self, batch: Batch) -> Perturbed:
        views = torch.cat([random_view(batch.images, **self.view) for _ in range(2)])
        return Perturbed(batch.images, {"views": views, "places": self.places(batch)})

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        options, count = self.options, len(batch)
        one = torch.arange(count, device=batch.images.device)
        logits, first, second = self.represent(perturbed.extras["views"], one, one + count)
        information = information_loss(
            first, second, perturbed.extras["places"], clip=options.tclip, penalty=options.penalty
        )
        probe = self.cross_entropy(logits, batch.targets.repeat(2))
        return {"loss": information + probe, "logits": logits[:count], "information": information.detach()}


class SSAT(Informed):
    """The two views are an image and its adversarial example, if that fools the k-NN classifier on the features."""

    options: SsatOptions
    norms = ("Linf",)

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        self._start_from(Path(self.options.encoder or run.output / "encoder"))
        self.encoder = run.attacker.view_of(Encoder(run.unwrapped_model, normalise=self.options.normalise))
        self.features = SampleTable(run, "ssat: features", (self.layout.width,))
        self.labels = SampleTable(run, "ssat: labels")
        self.labels.fill(-1)  # extra images do not vote
        self.steps = 0

    def on_epoch_start(self, epoch: int) -> None:
        if not self.steps:
            self.refresh()

    def perturb(self, batch: Batch) -> Perturbed:
        options = self.options
        attack = PGDkNN(
            self.encoder,
            self.index,
            eps=self.run.threat.eps,
            alpha=self.times_eps(options.step_ratio),
            steps=options.steps,
            guides=options.guides,
            guide=options.guide,
            random_start=options.random_start,
        )
        images = self.attack(batch.images, batch.targets, attack, bn=options.attack_bn)
        with torch.no_grad(), attack_mode(self.run.unwrapped_model):
            fooled = self.index.vote(self.encoder(images)) != batch.targets
        return Perturbed(images, {"fooled": fooled, "places": self.places(batch)})

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        fooled, count = perturbed.extras["fooled"], len(batch)
        kept = fooled.nonzero().squeeze(1)
        if len(kept) < 2:  # the loss needs a negative: a single image is repeated; without any the loss is masked below
            kept = torch.cat([kept, kept] if len(kept) else [torch.zeros_like(batch.targets[:1])] * 2)
        images = torch.cat([batch.images, perturbed.images[kept]])
        logits, clean, adversarial = self.represent(images, kept, count + torch.arange(len(kept), device=kept.device))
        places = perturbed.extras["places"][:, kept]
        information = information_loss(clean, adversarial, places, clip=self.options.tclip) * fooled.any()
        loss = information + self.cross_entropy(logits[:count], batch.targets)
        found = {"information": information.detach(), "attack_success": fooled.float().mean()}
        return {"loss": loss, "logits": logits[:count], **found}

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        options = self.options
        self.steps += 1
        if self.steps % options.index_refresh == 0:
            self.refresh()
        if options.checkpoint_every and self.steps % options.checkpoint_every == 0:
            self.run.save(f"steps/{self.steps:06d}", step=self.steps)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recomputes the features of all training images with the current weights, shared among processes."""
        several = dist.is_available() and dist.is_initialized()
        share = (dist.get_rank(), None, dist.get_world_size()) if several else (None,)
        with attack_mode(self.run.unwrapped_model):
            for batch in islice(self.run.unaugmented(), *share):
                self.features[batch.index] = self.encoder(batch.images)
                self.labels[batch.index] = batch.targets
        self.features.merge()
        self.labels.merge()
        self._search()

    def _search(self) -> None:
        known = (self.labels.values >= 0).nonzero().squeeze(1)
        self.index = Neighbours(self.features[known], self.labels[known].long(), self.run.num_classes, self.options.k)

    def _start_from(self, folder: Path) -> None:
        """Loads the encoder: model and projections of its last epoch if it has projections, else the model alone."""
        run = self.run
        teacher = next(part for part in run.teachers["encoder"].modules() if isinstance(part, PixelModel))
        mine, theirs = (replace(model.config, pretrained=False).to_dict() for model in (run.unwrapped_model, teacher))
        for what, value in theirs.items():
            if mine[what] != value:
                raise UserError(
                    f"encoder {str(folder)!r} has {what} {value!r}: expected {mine[what]!r}, as in this run"
                )
        model, found = read_trained(folder)
        projections = getattr(run.auxiliary_model, "module", run.auxiliary_model)
        wanted = projections.state_dict()
        if {name: value.shape for name, value in found.items()} == {n: value.shape for n, value in wanted.items()}:
            projections.load_state_dict(found)
            run.unwrapped_model.load_state_dict(model)
        else:
            run.unwrapped_model.load_state_dict(teacher.state_dict())
            run.say(f"encoder {folder} has no projections: they are initialised randomly; ssat-pretrain trains them")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "features": self.features.state_dict(), "labels": self.labels.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.features.load_state_dict(state["features"])
        self.labels.load_state_dict(state["labels"])
        self._search()
