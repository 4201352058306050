"""Accuracy under attack: one verdict per image, in the order of the data; and what a model must be for it to mean
something."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.data.batch import Batch
from timm_robust.evaluation.attack_spec import (
    ENSEMBLES,
    AttackSpec,
    ensemble_version,
    require_possible,
)
from timm_robust.evaluation.attempts import Attempt, attempts
from timm_robust.evaluation.preconditions import require_eval
from timm_robust.threat import Threat
from timm_robust.utils.random import preserve_rng_state


@torch.no_grad()
def robust_correct(
    measure: AttackSpec,
    attacker: Attacker,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Whether each image is classified correctly, clean and after the attack.

    What is tried several times attacks only the images that still stand. An image falls only if a plain forward pass of
    an adversarial image inside the ball and inside [0, 1] is misclassified. Random draws come from `seed` alone and the
    global generators are left as they were. The model is in eval mode throughout and comes back in the mode it had.

    Args:
        measure: what to run; no version of AutoAttack.
        attacker: the model and its threat.
        batches: images in data order.
        progress: called with the number of images done after each batch.

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
                if measure.name != "clean":
                    if tries is None:
                        require_possible(measure, attacker.threat, logits.shape[1])
                        tries = attempts(measure, attacker, logits.shape[1])
                    still_correct = survivors(tries, attacker.view, batch.images, batch.targets, still_correct)
                done.append(still_correct)
                if progress:
                    progress(len(batch))
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
    """Of the images that stand, those that `judge` still classifies correctly after every try.

    Args:
        tries: make adversarial images, perhaps on another network.
        judge: images to logits.
        images, targets: a batch.
        stands: bool [N].

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
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    measure: AttackSpec,
    *,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """`robust_correct` for images in one tensor, and for the versions of AutoAttack too.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        images, targets: float [N, C, H, W] in [0, 1] and int64 [N], on any device.
    """
    require_eval(model)
    if measure.name in ENSEMBLES:
        from timm_robust.evaluation.autoattack import run_autoattack

        version = ensemble_version(measure)
        result = run_autoattack(model, images, targets, threat, version=version, batch_size=batch_size, seed=seed)
        if progress:
            progress(len(images))
        return result.robust.cpu()
    batches = in_batches(images, targets, batch_size, next(model.parameters()).device)
    return robust_correct(measure, Attacker(model, threat), batches, seed=seed, progress=progress)


def in_batches(images: Tensor, targets: Tensor, size: int, device: torch.device) -> Iterator[Batch]:
    """Tensors as batches of at most `size` images, in order; one at a time is on the device."""
    for i in range(0, len(images), size):
        numbers = torch.arange(i, min(i + size, len(images)))
        yield Batch(images[i : i + size].to(device), targets[i : i + size].to(device), numbers)


def accuracy(still_correct: Tensor) -> float:
    """Share of verdicts that stand, in [0, 1]."""
    return still_correct.float().mean().item()
