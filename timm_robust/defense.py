"""The contract of a defense: perturb, loss, commit.

    batch = defense.augment(batch)                # usually nothing: the recipe's augmentation is done
    perturbed = defense.perturb(batch)            # adversarial images; no weight gradients; writes nothing
    output = defense.loss(batch, perturbed)       # "loss" and "logits"; writes nothing; may be called twice
    ... backward, optimizer step ...
    defense.commit(batch, perturbed, output)      # once per step: sample tables, teachers, averages

Three calls and not one, because weight perturbation evaluates `loss` twice on the same adversarial batch, because
tables must be written once, and because `perturb` runs on the bare module while `loss` runs on the one wrapped for
several processes. Plain PGD training overrides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_robust.data.batch import Batch
from timm_robust.options import PGDSettings

if TYPE_CHECKING:
    from timm_robust.attacks.attacker import Attacker
    from timm_robust.options import Options
    from timm_robust.recipes.recipe import Recipe
    from timm_robust.threat import Threat

StepOutput = dict[str, Tensor]
"""What `loss` returns: "loss" (scalar, required), "logits" [B, K] (recommended: gives the training accuracy),
other scalars are averaged over the epoch and logged."""


@dataclass(frozen=True)
class Perturbed:
    """What `perturb` hands to `loss`.

    Attributes:
        images: float [B, C, H, W] in [0, 1], inside the threat around the batch's images. A leaf that requires grad
            gets the input gradient of the update's own backward, for `commit` to use (free adversarial training).
        extras: anything else that the loss or the commit wants.
    """

    images: Tensor
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class TrainContext:
    """What a defense may know of the run it serves.

    Attributes:
        model: the network to call in `loss` (wrapped for several processes where there are some).
        unwrapped_model: the same network without any wrapper.
        attacker: makes adversarial images of `unwrapped_model` under `threat`.
        threat: norm and radius; where the recipe warms the radius up, that of the step under way, from the first on.
        recipe: the training settings.
        num_classes, num_train, image_size: sizes; `num_train` counts the samples that `Batch.index` numbers.
        frame_size: side of the frame that `Batch.view` counts in, None where each image has its own (`inception`) or
            where a view does not say how pixels move (`idbh`).
        device: where batches live.
        epochs, steps_per_epoch: length of the run; steps are batches of this process.
        seed: the run's seed.
        output: the run's folder.
        teachers: frozen networks by the option that names them, in eval mode, images in [0, 1] -> logits.
        auxiliary_model: what `Defense.auxiliary_model` made, wrapped for several processes where there are some.
        distilled: the manifest of distilled training data; empty elsewhere.
        batches: the current epoch's training batches once more, for statistics.
        unaugmented: all training images in their order, without augmentation, in batches; at any time.
        save: writes the weights as they are into a folder of the run's, as a checkpoint: `save("steps/10", step=10)`;
            further arguments go into its model.json.
        say: prints one lasting line for the user, on the first process only.
    """

    model: nn.Module
    unwrapped_model: nn.Module
    attacker: Attacker
    threat: Threat
    recipe: Recipe
    num_classes: int
    num_train: int
    image_size: int
    device: torch.device
    epochs: int
    steps_per_epoch: int
    seed: int
    output: Path
    frame_size: int | None = None
    in_chans: int = 3
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    auxiliary_model: nn.Module | None = None
    distilled: Mapping[str, Any] = field(default_factory=dict)
    batches: Callable[[], Iterable[Batch]] = field(default=lambda: ())
    unaugmented: Callable[[], Iterable[Batch]] = field(default=lambda: ())
    save: Callable[..., None] = field(default=lambda folder, **about: None)
    say: Callable[[str], None] = field(default=lambda _: None)


class Defense:
    """Base class of training methods; a plugin's class overrides `loss` and what else it needs.

    Args:
        options: the method's own frozen options.
    """

    run: TrainContext

    norms: tuple[str, ...] = ("Linf", "L2")
    """Norms of the threat that the method can train against."""

    adversarial = True
    """Whether robustness is what the method is after; the watch for catastrophic overfitting asks."""

    differentiates_twice = False
    """Whether the loss holds an input gradient; torch.compile cannot serve such a method."""

    reads_features = False
    """Whether the method hooks layers inside the network, which torch.compile hides."""

    replays = 1
    """Steps on each batch before the next one comes, counted by the schedule: free adversarial training has several."""

    eps_multiplier = 1.0
    """Radius in eps of the ball that training images are held to; above 1 where a method trains outside on purpose."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options})"

    def auxiliary_model(self, build: Callable[..., nn.Module]) -> nn.Module | None:
        """A network that is trained along with the model and not shipped; asked for once, before the optimizer is made.

        The engine optimizes it with the model, keeps it in last/ and hands it back as `run.auxiliary_model`.

        Args:
            build: makes a network for the run's images and classes, images in [0, 1] -> logits: `build(name, **kwargs)`
                with a timm name, or `build()` for the run's own architecture.
        """
        return None

    def setup(self, run: TrainContext) -> None:
        """Called once, after the model is built and before the first epoch: keep `run`, make sample tables."""
        self.run = run

    def augment(self, batch: Batch) -> Batch:
        """The batch as the method wants it: an augmentation of its own, such as mixing images. Once per batch."""
        return batch

    def perturb(self, batch: Batch) -> Perturbed:
        """Adversarial images for a batch: PGD with the options `steps`, `step_ratio`, `random_start`, `attack_bn`."""
        return Perturbed(self.attack(batch.images, batch.targets, "pgd", **self.pgd_settings()))

    def loss(self, batch: Batch, perturbed: Perturbed) -> StepOutput:
        """The loss of the update; must not write anything, since it may be called twice per step.

        By default cross-entropy on the adversarial images, which is all that many methods want.
        """
        logits = self.run.model(perturbed.images)
        return {"loss": self.cross_entropy(logits, batch.targets), "logits": logits}

    def commit(self, batch: Batch, perturbed: Perturbed, output: StepOutput) -> None:
        """Called once per step after the optimizer's; the place for everything that is stored."""

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch of `epoch` (from 0)."""

    def on_epoch_end(self, epoch: int) -> None:
        """Called after the last batch of `epoch` (from 0)."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    def may_be_best(self, epoch: int) -> bool:
        """Whether the weights after `epoch` (from 0) may become best/; no in the middle of a training cycle."""
        return True

    def soft_labels(self, index: Tensor, targets: Tensor) -> Tensor:
        """The labels [B, K] that the method now holds for some training samples; the given ones unless it refines them.

        Args:
            index: int64 [B], as in `Batch.index`.
            targets: int64 [B], the given labels.
        """
        return F.one_hot(targets, self.run.num_classes).float()

    def attack(
        self, images: Tensor, targets: Tensor, attack: Any = "pgd", *context: Any, bn: str = "eval", **settings: Any
    ) -> Tensor:
        """Adversarial images through torchattacks, behind the guard: see `timm_robust.attacks.Attacker`."""
        return self.run.attacker(
            images, targets, attack, *context, bn=bn, eps_multiplier=self.eps_multiplier, **settings
        )

    def times_eps(self, ratio: float) -> float:
        """A length in units of eps, such as the option `step_ratio`, in units of the [0, 1] pixel range."""
        return ratio * self.run.threat.eps

    def pgd_settings(self) -> dict[str, Any]:
        """Arguments of `attack` for PGD: those that the method's options declare, else `PGDSettings`' defaults."""
        settings = PGDSettings.from_options(self.options)
        return {
            "steps": settings.steps,
            "alpha": self.times_eps(settings.step_ratio),
            "random_start": settings.random_start,
            "bn": settings.attack_bn,
        }

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy with the recipe's label smoothing: mass s leaves the label for the other classes.

        Args:
            logits: [B, K].
            targets: int64 [B], or float [B, K] soft labels (then nothing is smoothed).
        """
        smoothing = self.run.recipe.label_smoothing if targets.ndim == 1 else 0.0
        # PyTorch spreads s' over all K classes; the field spreads s over the other K - 1
        classes = logits.shape[1]
        return F.cross_entropy(logits, targets, label_smoothing=min(1.0, smoothing * classes / (classes - 1)))
