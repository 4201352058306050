"""Attacks that were made on another network: what an attacker without access to the model can do.

They also tell masked gradients: a model that falls to somebody else's adversarial images more often than to its own is
not robust, its gradients are only useless (Athalye et al., ICML 2018, arXiv:1802.00420, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import in_batches, right, survivors
from timm_robust.evaluation.attack_spec import AttackSpec, parse_attack, require_possible
from timm_robust.evaluation.attempts import attempts
from timm_robust.evaluation.preconditions import require_eval
from timm_robust.threat import Threat
from timm_robust.utils.random import preserve_rng_state

STOP_AT_SUCCESS = ("APGD", "APGDT", "FAB", "Square", "CW", "DeepFool")
"""Classes of torchattacks that return the clean image where the source did not fall, and go no further where it did."""


@dataclass(frozen=True)
class Transfer:
    """How one network stands against attacks on others.

    Attributes:
        attack: what was run on each source.
        clean: verdicts without an attack, one 0/1 per image in data order.
        stands: by source, the verdicts of the target after the attack.
    """

    attack: str
    clean: tuple[int, ...]
    still_correct: Mapping[str, tuple[int, ...]]

    @property
    def accuracies(self) -> dict[str, float]:
        """Of the target, by source, in [0, 1]."""
        return {name: sum(row) / len(row) for name, row in self.still_correct.items()}

    @property
    def worst(self) -> tuple[int, ...]:
        """Verdicts after all sources: an image stands that stood each of them."""
        return tuple(int(all(column)) for column in zip(*self.still_correct.values(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        return {
            "attack": self.attack,
            "n_examples": len(self.clean),
            "clean_accuracy": sum(self.clean) / len(self.clean),
            "robust_accuracy": self.accuracies,
            "robust_accuracy_worst": sum(self.worst) / len(self.worst),
            "robust": {name: list(row) for name, row in self.still_correct.items()},
        }


def transfer(
    target: nn.Module,
    sources: Mapping[str, nn.Module],
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    attack: str = "pgd-50-1",
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Transfer:
    """Accuracy of a target under attacks that were made on each source.

    A source is attacked on every image that the target gets right, whether the source does or not; restarts are given
    to the target one by one.

    Args:
        target: in eval mode, images in [0, 1] to logits.
        sources: by name, networks in eval mode for the same images and classes.
        images: float [N, C, H, W] in [0, 1].
        targets: int64 [N].
        threat: the ball of both.
        attack: `fgsm`, `pgd-K-R`, `cw-linf`, or one of torchattacks that follows a loss to the end; momentum helps
            transfer: `torchattacks:MIFGSM:steps=50`.
        batch_size: images at once.
        seed: of every random draw, for each source anew.
        progress: called with the source, images done and images in all.

    Raises:
        UserError: a source for other images or classes, an attack that does not transfer, a model in train mode.
    """
    measure = _transferable(attack)
    if not sources:
        raise UserError("a transfer attack needs at least one source: expected a second checkpoint")
    for model in (target, *sources.values()):
        require_eval(model)
    device = next(target.parameters()).device
    num_classes = _classes(target, images, "the target")
    require_possible(measure, threat, num_classes)
    for name, source in sources.items():
        _require_alike(name, source, target, images, num_classes)
    judge = Attacker(target, threat).view
    with torch.no_grad():
        batches = in_batches(images, targets, batch_size, device)
        clean = [right(judge(batch.images), batch.targets) for batch in batches]
    still_correct = {}
    for name, source in sources.items():
        tries = attempts(measure, Attacker(source, threat), num_classes)
        kept, done = [], 0
        with preserve_rng_state(seed):
            batches = in_batches(images, targets, batch_size, device)
            for batch, standing in zip(batches, clean, strict=True):
                kept.append(survivors(tries, judge, batch.images, batch.targets, standing))
                done += len(batch)
                if progress:
                    progress(f"from {name}", done, len(images))
        still_correct[name] = tuple(torch.cat(kept).int().tolist())
    return Transfer(measure.name, tuple(torch.cat(clean).int().tolist()), still_correct)


def _transferable(attack: str) -> AttackSpec:
    measure = parse_attack(attack)
    follows = measure.name in ("fgsm", "cw-linf") or measure.name.startswith("pgd-")
    if follows or (measure.attack and measure.attack not in STOP_AT_SUCCESS):
        return measure
    raise UserError(
        f"attack {measure.name!r} stops where the source falls, so that little transfers: expected fgsm, pgd-K-R, "
        "cw-linf or one of torchattacks such as torchattacks:MIFGSM"
    )


def _require_alike(name: str, source: nn.Module, target: nn.Module, images: Tensor, num_classes: int) -> None:
    """Refuses a source for images or classes that are not the target's."""
    configs = [getattr(model, "config", None) for model in (source, target)]
    if all(configs):
        for what, field in (("image size", "image_size"), ("number of channels", "in_chans")):
            its, wanted = (getattr(config, field) for config in configs)
            if its != wanted:
                raise UserError(f"source {name!r} has {what} {its}, the target {wanted}: expected the same for both")
    found = _classes(source, images, f"source {name!r}")
    if found != num_classes:
        raise UserError(f"source {name!r} has {found} classes, the target {num_classes}: expected the same for both")


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor, who: str) -> int:
    try:
        return model(images[:1].to(next(model.parameters()).device)).shape[1]
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(f"{who} cannot take images of {shape}: expected networks for the same images") from error
