"""Is robustness real, or are gradients only masked? Checks that an honest evaluation passes.

A. Athalye, N. Carlini, D. Wagner, Obfuscated gradients give a false sense of security, ICML 2018, arXiv:1802.00420,
section 3.1; N. Carlini et al., On evaluating adversarial robustness, 2019, arXiv:1902.06705, section 4. Passing all of
them proves nothing; failing one says that gradient attacks, and numbers taken with them, cannot be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.attacker import Attacker
from timm_robust.attacks.l1 import project_l1
from timm_robust.attacks.steps import project
from timm_robust.evaluation.accuracy import accuracy, in_batches, right, robust_correct_of, survivors
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.evaluation.attempts import margin
from timm_robust.threat import Threat

SLACK = 0.01
"""Share of the images, and at least one, by which chance may turn a comparison around."""

UNBOUNDED = 0.05
"""Accuracy that an attack without a bound may leave."""

STEPS = (1, 10, 50)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what it looks for.
        passed: whether it did not find it.
        numbers: what was measured; accuracies and shares in [0, 1].
        meaning: what a failure means, and what to do.
    """

    name: str
    passed: bool
    numbers: dict[str, float]
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_masking(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    draws: int = 100,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """All checks, on one model.

    Args:
        model: in eval mode, images in [0, 1] to logits.
        images: float [N, C, H, W] in [0, 1]; a hundred or more tell something.
        targets: int64 [N].
        threat: Linf, L2 or L1.
        draws: random perturbations of each image.
        batch_size: images at once.
        seed: of every random draw.
        progress: told what runs.

    Raises:
        UserError: a model in train mode.
    """
    slack = max(1, math.floor(SLACK * len(images))) / len(images)

    def still_correct(name: str, against: Threat = threat) -> Tensor:
        if progress:
            progress(name if against is threat else f"{name} without a bound")
        measure = parse_attack(name)
        return robust_correct_of(model, images, targets, against, measure, batch_size=batch_size, seed=seed)

    clean = still_correct("clean")
    by_steps = {steps: still_correct(f"pgd-{steps}-1") for steps in STEPS}
    strong = by_steps[STEPS[-1]]
    one_step = still_correct("fgsm")
    if progress:
        progress(f"{draws} random draws")
    lucky = after_noise(model, images, targets, threat, clean, draws=draws, batch_size=batch_size, seed=seed)
    unbounded = still_correct("pgd-50-1", _whole(threat, images))
    if progress:
        progress("gradients of the inputs")
    zero_loss, zero_margin = zero_gradients(model, images, targets, batch_size=batch_size)
    rises = [accuracy(by_steps[more]) - accuracy(by_steps[few]) for few, more in pairwise(STEPS)]
    only_noise = accuracy(strong & ~lucky)
    return [
        Check(
            "one step beats many",
            accuracy(one_step) >= accuracy(strong) - slack,
            {"fgsm": accuracy(one_step), f"pgd-{STEPS[-1]}-1": accuracy(strong)},
            "the gradient leads astray after the first step, on a loss surface that is rugged; use AutoAttack, whose "
            "Square needs no gradient",
        ),
        Check(
            "random noise beats the gradient",
            only_noise <= slack,
            {
                f"best of {draws} draws": accuracy(lucky),
                f"pgd-{STEPS[-1]}-1": accuracy(strong),
                "noise alone": only_noise,
            },
            "blind search finds adversarial images that the gradient misses, so the gradient is useless; use attacks "
            "without gradients (Square) or through an approximation of the masking layer (BPDA)",
        ),
        Check(
            "an unbounded attack fails",
            accuracy(unbounded) <= max(UNBOUNDED, 1 / len(images)),
            {"pgd-50-1 without a bound": accuracy(unbounded)},
            "an attack that may change every pixel at will must succeed: where it does not, it is the attack that is "
            "stopped, and no number at a smaller radius means anything",
        ),
        Check(
            "accuracy rises with steps",
            max(rises) <= slack,
            {f"pgd-{steps}-1": accuracy(found) for steps, found in by_steps.items()},
            "more steps of the same attack must not do worse: the gradient is noisy, as in random defenses, which need "
            "averages over their draws (torchattacks:EOTPGD, autoattack-rand)",
        ),
        Check(
            "gradients are zero",
            max(zero_loss, zero_margin) <= slack,
            {"images without gradient of cross-entropy": zero_loss, "without gradient of the margin": zero_margin},
            "attacks have nothing to follow; of cross-entropy alone: the logits are so large that it has saturated, "
            "use apgd-dlr or cw-linf; of both: a rounding or saturated layer cuts the gradient",
        ),
    ]


def _whole(threat: Threat, images: Tensor) -> Threat:
    """A ball that holds the whole pixel range around every image."""
    size = images[0].numel()
    eps = {"Linf": 1.0, "L2": math.sqrt(size), "L1": float(size)}[threat.norm]
    return Threat(threat.norm, eps, f"{eps:g}")


@torch.no_grad()
def after_noise(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    still_correct: Tensor,
    *,
    draws: int,
    batch_size: int = 250,
    seed: int = 0,
) -> Tensor:
    """Of the images that stand, those that every one of so many random perturbations leaves right.

    Under Linf each pixel moves by eps up or down, under L2 and L1 the direction is a normal or a Laplace one of full
    length: the far end of the ball, where chance has most to find.

    Returns:
        bool [N] on the CPU.
    """
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(seed)

    def attempt(x: Tensor, _: Tensor) -> Tensor:
        if threat.norm == "Linf":
            noise = torch.randint(0, 2, x.shape, generator=draw).to(x) * 2 - 1
            return project(x + threat.eps * noise, x, threat)
        if threat.norm == "L2":
            noise = torch.randn(x.shape, generator=draw).to(x)
            return project(x + threat.eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1), x, threat)
        flat = torch.rand(x.shape, generator=draw).to(x) - 0.5
        noise = flat.sign() * -torch.log1p((-2 * flat.abs()).clamp(min=-1 + 1e-6))
        length = noise.flatten(1).abs().sum(dim=1).view(-1, 1, 1, 1)
        return project_l1(x + threat.eps * noise / length, x, threat.eps)

    kept = [
        survivors([attempt] * draws, Attacker(model, threat).view, batch.images, batch.targets, part.to(device))
        for batch, part in zip(
            in_batches(images, targets, batch_size, device), still_correct.split(batch_size), strict=True
        )
    ]
    return torch.cat(kept).cpu()


def zero_gradients(model: nn.Module, images: Tensor, targets: Tensor, *, batch_size: int = 250) -> tuple[float, float]:
    """Share of the images that are classified correctly and whose input gradient is zero, every pixel of it.

    Returns:
        the share for cross-entropy, and the share for the margin of the logits, both of all images.
    """
    lost = [0, 0]
    for batch in in_batches(images, targets, batch_size, next(model.parameters()).device):
        with torch.enable_grad(), attack_mode(model):
            pixels = batch.images.detach().clone().requires_grad_(True)
            logits = model(pixels).float()
            if not logits.requires_grad:  # nothing of the input reaches the outputs
                lost = [count + int(right(logits, batch.targets).sum()) for count in lost]
                continue
            standing = right(logits, batch.targets)
            losses = (
                nn.functional.cross_entropy(logits, batch.targets, reduction="sum"),
                margin(logits, batch.targets).sum(),
            )
            for place, loss in enumerate(losses):
                (gradient,) = torch.autograd.grad(loss, pixels, retain_graph=place == 0)
                none = gradient.flatten(1).abs().amax(dim=1) == 0
                lost[place] += int((none & standing).sum())
    return lost[0] / len(images), lost[1] / len(images)
