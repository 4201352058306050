"""Clean, FGSM and PGD accuracy: one verdict per image, in the order of the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from timm_robust.attacks import Attacker
from timm_robust.data.batch import Batch
from timm_robust.errors import UserError, nearest

EXAMPLES = ("clean", "fgsm", "pgd-10-1", "pgd-50-10", "autoattack")


@dataclass(frozen=True)
class Measure:
    """What to measure: `clean`, `fgsm`, `pgd-K-R` (K steps, R restarts, each from uniform noise) or `autoattack`."""

    name: str
    steps: int = 0
    restarts: int = 1


def parse_measure(name: str) -> Measure:
    """`pgd` means pgd-50-10; see `Measure`.

    Raises:
        UserError: anything else.
    """
    text = name.strip().lower()
    if text in ("clean", "autoattack"):
        return Measure(text)
    if text == "fgsm":
        return Measure("fgsm", steps=1)
    if text == "pgd":
        text = "pgd-50-10"
    match = re.fullmatch(r"pgd-([1-9]\d*)(?:-([1-9]\d*))?", text)
    if match:
        steps, restarts = int(match[1]), int(match[2] or 1)
        return Measure(f"pgd-{steps}-{restarts}", steps, restarts)
    close = nearest(name, EXAMPLES, n=1)
    raise UserError(
        f"unknown attack {name!r}: expected clean, fgsm, autoattack or pgd-STEPS-RESTARTS such as pgd-50-10"
        + (f"; did you mean {close[0]}?" if close else "")
    )


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

    The step is 2/255 at eps 8/255 and in proportion elsewhere; a restart attacks only the images that still stand.
    Random draws come from `seed` alone and the global generators are left as they were. The model is in eval mode
    throughout and comes back in the mode it had.

    Args:
        measure: what to run; not `autoattack`.
        attacker: the model and its threat.
        batches: images in data order.
        progress: called with the number of images done after each batch.

    Returns:
        bool [N] on the CPU.
    """
    model, done = attacker.model, []
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.eval()
        try:
            for batch in batches:
                stands = attacker.view(batch.images).argmax(1) == batch.targets
                if measure.name != "clean":
                    stands = _survivors(measure, attacker, batch, stands)
                done.append(stands)
                if progress:
                    progress(len(batch))
        finally:
            for module, training in modes:
                module.training = training
    return torch.cat(done).cpu()


def _survivors(measure: Measure, attacker: Attacker, batch: Batch, stands: Tensor) -> Tensor:
    stands = stands.clone()
    eps = attacker.threat.eps
    for _ in range(measure.restarts):
        rows = stands.nonzero().squeeze(1)
        if len(rows) == 0:
            break
        images, targets = batch.images[rows], batch.targets[rows]
        if measure.name == "fgsm":
            adversarial = attacker(images, targets, "fgsm")
        else:
            adversarial = attacker(images, targets, "pgd", steps=measure.steps, alpha=eps / 4, random_start=True)
        stands[rows] = attacker.view(adversarial).argmax(1) == targets
    return stands


def accuracy(stands: Tensor) -> float:
    """Share of verdicts that stand, in [0, 1]."""
    return stands.float().mean().item()


def require_eval(model: nn.Module) -> None:
    """Refuses a model in train mode: dropout and batch statistics would make every number meaningless."""
    if model.training:
        raise UserError("the model is in train mode: call model.eval() before evaluating it")
