"""Transfer attacks, crafted on another network: what an attacker without access to the model can do.

They also reveal masked gradients: a model that is broken by another network's adversarial images more often than by its
own is not robust, its gradients are only useless (Athalye et al., ICML 2018, arXiv:1802.00420, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import right, survivors
from timm_robust.evaluation.attack_spec import AttackSpec, parse_attack, require_possible
from timm_robust.evaluation.attempts import attempts
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.preconditions import device_of, require_eval
from timm_robust.evaluation.settings import DEFAULTS, EvalSettings
from timm_robust.models.pixel_model import ModelConfig
from timm_robust.utils.progress import Progress, tracked
from timm_robust.utils.random import preserve_rng_state

STOP_AT_SUCCESS = ("APGD", "APGDT", "FAB", "Square", "CW", "DeepFool")
"""Classes of torchattacks that stop once the source is broken, and return the clean image where it is not."""


@dataclass(frozen=True)
class Transfer:
    """Verdicts of one network under attacks on others.

    Attributes:
        attack: name of the attack on each source.
        clean: verdicts without an attack, one 0/1 per image in data order.
        still_correct: by source, the verdicts of the target after the attack.
    """

    attack: str
    clean: tuple[int, ...]
    still_correct: Mapping[str, tuple[int, ...]]

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracies of the target, by source, in [0, 1]."""
        return {name: sum(row) / len(row) for name, row in self.still_correct.items()}

    @property
    def worst(self) -> tuple[int, ...]:
        """Verdicts after all sources: whether an image withstood each of them."""
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
    inputs: EvalInputs,
    sources: Mapping[str, nn.Module],
    attack: str = "pgd-50-1",
    settings: EvalSettings = DEFAULTS,
    *,
    progress: Progress | None = None,
) -> Transfer:
    """Accuracy of a target under attacks that were crafted on each source.

    A source is attacked on every image that the target gets right, whether the source does or not; the target sees the
    result of every restart.

    Args:
        inputs: the target, images, labels and threat.
        sources: by name, networks in eval mode for the same images and classes.
        attack: `fgsm`, `pgd-K-R`, `cw-linf`, or one of torchattacks that follows a loss to the end; momentum helps
            transfer: `torchattacks:MIFGSM:steps=50`.
        settings: batch size; seed, the same for each source.
        progress: called with the images done of each source.

    Raises:
        UserError: a source for other images or classes or in train mode, or an attack that does not transfer.
    """
    spec = _transferable(attack)
    if not sources:
        raise UserError("a transfer attack needs at least one source: expected a second checkpoint")
    require_possible(spec, inputs.threat, inputs.num_classes)
    for name, source in sources.items():
        require_eval(source)
        _require_alike(name, source, inputs)
    judge = Attacker(inputs.model, inputs.threat).view
    with torch.no_grad():
        clean = [right(judge(batch.images), batch.targets) for batch in inputs.batches(settings.batch_size)]
    still_correct = {
        name: tuple(_under(source, name, spec, inputs, clean, settings, progress).int().tolist())
        for name, source in sources.items()
    }
    return Transfer(spec.name, tuple(torch.cat(clean).int().tolist()), still_correct)


def _under(
    source: nn.Module,
    name: str,
    spec: AttackSpec,
    inputs: EvalInputs,
    clean: list[Tensor],
    settings: EvalSettings,
    progress: Progress | None,
) -> Tensor:
    """Verdicts of the target under an attack on one source, bool [N]; `clean` are those without, by batch."""
    tries = attempts(spec, Attacker(source, inputs.threat), inputs.num_classes)
    judge = Attacker(inputs.model, inputs.threat).view
    batches = tracked(inputs.batches(settings.batch_size), progress, f"from {name}", len(inputs))
    kept = []
    with preserve_rng_state(settings.seed):
        for batch, correct in zip(batches, clean, strict=True):
            kept.append(survivors(tries, judge, batch.images, batch.targets, correct))
    return torch.cat(kept)


def _transferable(attack: str) -> AttackSpec:
    spec = parse_attack(attack)
    follows = spec.name in ("fgsm", "cw-linf") or spec.name.startswith("pgd-")
    if follows or (spec.attack and spec.attack not in STOP_AT_SUCCESS):
        return spec
    raise UserError(
        f"attack {spec.name!r} stops where the source falls, so that little transfers: expected fgsm, pgd-K-R, "
        "cw-linf or one of torchattacks such as torchattacks:MIFGSM"
    )


def _require_alike(name: str, source: nn.Module, inputs: EvalInputs) -> None:
    """Refuses a source for images or classes that are not the target's."""
    configs = [getattr(model, "config", None) for model in (source, inputs.model)]
    if all(isinstance(config, ModelConfig) for config in configs):
        for what, field in (("image size", "image_size"), ("number of channels", "in_chans")):
            its, wanted = (getattr(config, field) for config in configs)
            if its != wanted:
                raise UserError(f"source {name!r} has {what} {its}, the target {wanted}: expected the same for both")
    found = _num_classes(name, source, inputs)
    if found != inputs.num_classes:
        raise UserError(
            f"source {name!r} has {found} classes, the target {inputs.num_classes}: expected the same for both"
        )


@torch.no_grad()
def _num_classes(name: str, source: nn.Module, inputs: EvalInputs) -> int:
    try:
        return source(inputs.images[:1].to(device_of(source, inputs.images))).shape[1]
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = "x".join(map(str, inputs.images.shape[1:]))
        raise UserError(
            f"source {name!r} cannot take images of {shape}: expected networks for the same images"
        ) from error
