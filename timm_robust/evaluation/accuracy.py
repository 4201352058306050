"""Accuracy under attack: one verdict per image, in the order of the data; and what a model must be for it to mean
something."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from timm_robust.attacks import Attacker, crafting
from timm_robust.data.batch import Batch
from timm_robust.errors import UserError
from timm_robust.evaluation.attempts import Attempt, attempts
from timm_robust.evaluation.measures import (
    ENSEMBLES,
    EXAMPLES,
    Measure,
    ensemble_version,
    parse_measure,
    require_possible,
)
from timm_robust.randomness import kept_generators
from timm_robust.threat import Threat

__all__ = [
    "EXAMPLES",
    "Measure",
    "accuracy",
    "in_batches",
    "output_warnings",
    "parse_measure",
    "require_deterministic",
    "require_eval",
    "require_finite",
    "right",
    "survivors",
    "verdicts",
    "verdicts_of",
]

SAME_WITHIN = 1e-4
"""How far the normalised logits of one image may move between two forward passes; AutoAttack's own bound."""


@torch.no_grad()
def verdicts(
    measure: Measure,
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
    with kept_generators(seed):
        model.eval()
        try:
            for batch in batches:
                logits = attacker.view(batch.images)
                stands = right(logits, batch.targets)
                if measure.name != "clean":
                    if tries is None:
                        require_possible(measure, attacker.threat, logits.shape[1])
                        tries = attempts(measure, attacker, logits.shape[1])
                    stands = survivors(tries, attacker.view, batch.images, batch.targets, stands)
                done.append(stands)
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
    tries: Sequence[Attempt], judge: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, stands: Tensor
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
    stands = stands.clone()
    for attempt in tries:
        rows = stands.nonzero().squeeze(1)
        if len(rows) == 0:
            break
        adversarial = attempt(images[rows], targets[rows])
        stands[rows] = right(judge(adversarial), targets[rows])
    return stands


def verdicts_of(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    measure: Measure,
    *,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """`verdicts` for images in one tensor, and for the versions of AutoAttack too.

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
    return verdicts(measure, Attacker(model, threat), batches, seed=seed, progress=progress)


def in_batches(images: Tensor, targets: Tensor, size: int, device: torch.device) -> Iterator[Batch]:
    """Tensors as batches of at most `size` images, in order; one at a time is on the device."""
    for i in range(0, len(images), size):
        numbers = torch.arange(i, min(i + size, len(images)))
        yield Batch(images[i : i + size].to(device), targets[i : i + size].to(device), numbers)


def accuracy(stands: Tensor) -> float:
    """Share of verdicts that stand, in [0, 1]."""
    return stands.float().mean().item()


def require_eval(model: nn.Module) -> None:
    """Refuses a model in train mode, or with a part in it: dropout and batch statistics would make every number
    meaningless."""
    for name, module in model.named_modules():
        if module.training:
            what = f"part {name!r} of the model" if name else "the model"
            raise UserError(f"{what} is in train mode: call model.eval() before evaluating it")


@torch.no_grad()
def require_deterministic(model: nn.Module, images: Tensor) -> None:
    """Refuses a model that gives one image two answers: an attack would only be lucky, or unlucky.

    Args:
        model: in eval mode.
        images: float [N, C, H, W]; the first eight are looked at, twice.

    Raises:
        UserError: logits, scaled to length 1, that differ by more than 1e-4, as in AutoAttack's check.
    """
    device = next(model.parameters()).device
    sample = images[:8].to(device)
    with crafting(model), kept_generators():
        one, two = (nn.functional.normalize(model(sample).float(), dim=1) for _ in range(2))
    apart = (one - two).abs().max().item()
    if apart > SAME_WITHIN:
        raise UserError(
            f"the model is not deterministic: two forward passes of the same images differ by {apart:.2g} in logits of "
            "length 1, expected the same; use autoattack-rand, and say that random outputs are meant"
        )


@torch.no_grad()
def require_finite(model: nn.Module, images: Tensor, *, batch_size: int = 250) -> None:
    """Refuses a model whose logits are NaN or infinite for one of the images.

    Args:
        model: in eval mode.
        images: float [N, C, H, W] in [0, 1].

    Raises:
        UserError: names the first such image.
    """
    device = next(model.parameters()).device
    for start in range(0, len(images), batch_size):
        logits = model(images[start : start + batch_size].to(device))
        lost = (~logits.isfinite()).any(dim=1).nonzero().squeeze(1)
        if len(lost):
            value = logits[lost[0]][~logits[lost[0]].isfinite()][0].item()
            raise UserError(
                f"the model's logits are {value:g} for image {start + int(lost[0])}: expected finite numbers; its "
                "weights may be damaged"
            )


@torch.no_grad()
def output_warnings(model: nn.Module, images: Tensor) -> list[str]:
    """What to warn of in the outputs for some images: probabilities, whose gradients vanish, in place of logits."""
    outputs = model(images[:32].to(next(model.parameters()).device)).float()
    shares = ((outputs >= 0) & (outputs <= 1)).all() and ((outputs.sum(dim=1) - 1).abs() < 1e-5).all()
    return ["the outputs look like probabilities: return logits instead of a softmax"] if bool(shares) else []
