"""Self-supervised adversarial training, and the pre-training of its encoder.

K. Chen, Y. Chen, H. Zhou, X. Mao, Y. Li, Y. He, H. Xue, W. Zhang, N. Yu, Self-supervised Adversarial Training, ICASSP
2020, arXiv:1911.06470. Written from a description of the released notebooks; the file with the attack is reconstructed.
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
from timm_robust.attacks.attacker import AttackView
from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.errors import UserError
from timm_robust.models.pixel_model import PixelModel
from timm_robust.runs.checkpoint import STATE, load_state
from timm_robust.sample_table import SampleTable

from .information import Features, information_loss
from .knn import Neighbours
from .options import PretrainingOptions, SsatOptions
from .pgd_knn import PGDkNN
from .representation import SIDES, Encoder, Projections, find_layout, recorded
from .views import random_view


class Informed(Defense):
    """What both phases share: two views go through the network at once, and their features should tell of each other.

    The classifier learns beside them, from detached features of images whose labels are known: a linear probe.
    """

    def auxiliary_model(self, build: Callable[..., nn.Module]) -> nn.Module:
        return Projections(find_layout(build()))

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        if getattr(run.unwrapped_model, "_compiled_call_impl", None) is not None:
            raise UserError("this method reads features inside the network, which torch.compile hides: no --compile")
        self.layout = find_layout(run.unwrapped_model)

    def places(self, batch: Batch) -> Tensor:
        """For each view and image a place on the coarsest map, int64 [2, B]."""
        return torch.randint(SIDES[0] ** 2, (2, len(batch)), device=batch.images.device)

    def represent(self, images: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Features, Features]:
        """Logits of some images, and the features of two views among them.

        Args:
            images: [N, C, H, W].
            one, other: int64 [B], positions of the views' images.
        """
        with recorded(self.run.unwrapped_model, [layer.name for layer in self.layout.maps]) as seen:
            logits = self.run.model(images)
        both = torch.cat([one, other])
        maps = self.run.auxiliary_model([found[both] for found in self.layout.pooled(seen)])
        parts = zip(*(found.split(len(one)) for found in (seen.vector[both], *maps)), strict=True)
        first, second = (Features(vector, tuple(rest)) for vector, *rest in parts)
        return logits, first, second


class Pretraining(Informed):
    """Two augmented views of each image; no attack, and no label but for the linear probe."""

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
    """The two views are an image and its adversarial one, where that fools the k-NN classifier on the features."""

    options: SsatOptions
    norms = ("Linf",)

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        self._start_from(Path(self.options.encoder or run.output / "encoder"))
        attacker = run.attacker.view
        encoder = Encoder(run.unwrapped_model, normalise=self.options.normalise)
        self.encoder = AttackView(encoder, attacker.autocast, attacker.gradient_scale)
        self.features = SampleTable(run, "ssat: features", (self.layout.width,))
        self.labels = SampleTable(run, "ssat: labels")
        self.labels.fill(-1)  # of extra images, which nobody votes for
        self.steps = 0

    def on_epoch_start(self, epoch: int) -> None:
        if not self.steps:
            self.refresh()

    def perturb(self, batch: Batch) -> Perturbed:
        options, eps = self.options, self.run.threat.eps
        attack = PGDkNN(
            self.encoder,
            self.index,
            eps=eps,
            alpha=options.step_ratio * eps,
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
        if len(kept) < 2:  # a single one twice, since the loss needs a negative; without any it counts for nothing
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
        """Takes the features of all training images with the weights as they are, each process its share."""
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
        """The weights of the encoder's run; its projections too, and then both of its last epoch, if it has some."""
        run = self.run
        teacher = next(part for part in run.teachers["encoder"].modules() if isinstance(part, PixelModel))
        mine, theirs = (replace(model.config, pretrained=False).to_dict() for model in (run.unwrapped_model, teacher))
        for what, value in theirs.items():
            if mine[what] != value:
                raise UserError(
                    f"encoder {str(folder)!r} has {what} {value!r}: expected {mine[what]!r}, as in this run"
                )
        state = load_state(folder / "last") if (folder / "last" / STATE).is_file() else {}
        projections = getattr(run.auxiliary_model, "module", run.auxiliary_model)
        found = {name.removeprefix("module."): value for name, value in (state.get("companion") or {}).items()}
        wanted = projections.state_dict()
        if {name: value.shape for name, value in found.items()} == {n: value.shape for n, value in wanted.items()}:
            projections.load_state_dict(found)
            run.unwrapped_model.load_state_dict(state["model"])
        else:
            run.unwrapped_model.load_state_dict(teacher.state_dict())
            run.say(f"encoder {folder} has no projections: they start at random, ssat-pretrain would train them")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "features": self.features.state_dict(), "labels": self.labels.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.features.load_state_dict(state["features"])
        self.labels.load_state_dict(state["labels"])
        self._search()
