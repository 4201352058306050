"""Accuracy under attack: whether each image is still classified correctly, in the order of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from timm_robust.attacks.attacker import Attacker
from timm_robust.data.batch import Batch
from timm_robust.evaluation.attack_spec import ENSEMBLES, AttackSpec, ensemble_version, require_possible
from timm_robust.evaluation.attempts import Attempt, attempts
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import DEFAULTS, EvalSettings
from timm_robust.utils.progress import Progress, tracked
from timm_robust.utils.random import preserve_rng_state


@torch.no_grad()
def robust_correct(spec: AttackSpec, attacker: Attacker, batches: Iterable[Batch], *, seed: int = 0) -> Tensor:
    """Whether each image is classified correctly, clean and after the attack.

    An attack of several attempts goes on with the images that withstood the earlier ones. An image counts as broken
    only if a plain forward pass of an adversarial image inside the ball and inside [0, 1] is misclassified. Random
    draws come from `seed` alone, and the global generators are left as they were. The model is in eval mode throughout
    and comes back in the mode it had.

    Args:
        spec: attack to run; no version of AutoAttack.
        attacker: model and threat.
        batches: images in data order.
        seed: random seed of the attack.

    Returns:
        bool [N] on the CPU.

    Raises:
        UserError: an attack that this norm or number of classes does not allow.
    """
    model, done = attacker.model, []
    modes = [(module, module.training) for module in model.modules()]
    tries: list[Attempt] | None = None
    with preserve_rng_state(seed):
        model.eval()
        try:
            for batch in batches:
                logits = attacker.view(batch.images)
                still_correct = right(logits, batch.targets)
                if spec.name != "clean":
                    if tries is None:
                        require_possible(spec, attacker.threat, logits.shape[1])
                        tries = attempts(spec, attacker, logits.shape[1])
                    still_correct = survivors(tries, attacker.view, batch.images, batch.targets, still_correct)
                done.append(still_correct)
        finally:
            for module, training in modes:
                module.training = training
    return torch.cat(done).cpu()


def right(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each image is classified correctly, bool [N]; never where the logits are not finite."""
    return (logits.argmax(1) == targets) & logits.isfinite().all(1)


@torch.no_grad()
def survivors(
    tries: Sequence[Attempt], judge: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, still_correct: Tensor
) -> Tensor:
    """Images that `judge` classifies correctly after every attempt.

    Args:
        tries: make adversarial images, perhaps on another network.
        judge: images to logits.
        images, targets: a batch.
        still_correct: bool [N], images to attack.

    Returns:
        bool [N].
    """
    still_correct = still_correct.clone()
    for attempt in tries:
        rows = still_correct.nonzero().squeeze(1)
        if len(rows) == 0:
            break
        adversarial = attempt(images[rows], targets[rows])
        still_correct[rows] = right(judge(adversarial), targets[rows])
    return still_correct


def robust_correct_of(
    inputs: EvalInputs, spec: AttackSpec, settings: EvalSettings = DEFAULTS, *, progress: Progress | None = None
) -> Tensor:
    """`robust_correct` for the inputs of an evaluation, and for the versions of AutoAttack too.

    Returns:
        bool [N] on the CPU.
    """
    if spec.name in ENSEMBLES:
        return run_autoattack(inputs, ensemble_version(spec), settings, progress=progress).robust
    batches = tracked(inputs.batches(settings.batch_size), progress, spec.name, len(inputs))
    return robust_correct(spec, Attacker(inputs.model, inputs.threat), batches, seed=settings.seed)


def accuracy(still_correct: Tensor) -> float:
    """Share of images that are still classified correctly, in [0, 1]."""
    return still_correct.float().mean().item()
