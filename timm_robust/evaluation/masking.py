"""Signs of masked gradients: checks that tell real robustness from gradients that are merely useless.

A. Athalye, N. Carlini, D. Wagner, Obfuscated gradients give a false sense of security, ICML 2018, arXiv:1802.00420,
section 3.1; N. Carlini et al., On evaluating adversarial robustness, 2019, arXiv:1902.06705, section 4. Passing all of
them proves nothing; failing one says that gradient attacks, and numbers taken with them, cannot be trusted.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.attacker import Attacker
from timm_robust.attacks.l1 import project_l1
from timm_robust.attacks.steps import project
from timm_robust.evaluation.accuracy import accuracy, right, robust_correct_of, survivors
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.evaluation.attempts import Attempt, margin
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import DEFAULTS, EvalSettings
from timm_robust.threat import Threat
from timm_robust.utils.progress import Progress, tracked

SLACK = 0.01
"""Share of the images, and at least one, by which chance may reverse a comparison."""

UNBOUNDED = 0.05
"""Accuracy that an unbounded attack may leave."""

STEPS = (1, 10, 50)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: sign that it looks for.
        passed: whether the sign is absent.
        numbers: measured accuracies and shares, in [0, 1].
        meaning: meaning of a failure, and a remedy.
    """

    name: str
    passed: bool
    numbers: dict[str, float]
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_masking(
    inputs: EvalInputs, *, draws: int = 100, settings: EvalSettings = DEFAULTS, progress: Progress | None = None
) -> list[Check]:
    """All checks, on one model.

    Args:
        inputs: model, images (a hundred or more are needed for a sharp answer), labels and threat.
        draws: number of random perturbations of each image.
        settings: batch size and seed.
        progress: called with the progress of the running attack.
    """

    def still_correct(name: str) -> Tensor:
        return robust_correct_of(inputs, parse_attack(name), settings, progress=progress)

    clean = still_correct("clean")
    by_steps = {steps: accuracy(still_correct(f"pgd-{steps}-1")) for steps in STEPS[:-1]}
    strong = still_correct(f"pgd-{STEPS[-1]}-1")
    by_steps[STEPS[-1]] = accuracy(strong)
    one_step = accuracy(still_correct("fgsm"))
    lucky = after_noise(inputs, clean, draws=draws, settings=settings, progress=progress)
    unbounded = robust_correct_of(
        inputs.with_threat(_whole(inputs)), parse_attack("pgd-50-1"), settings, progress=progress
    )
    slack = max(1, math.floor(SLACK * len(inputs))) / len(inputs)
    return [
        _one_step(one_step, by_steps[STEPS[-1]], slack),
        _noise(draws, accuracy(lucky), by_steps[STEPS[-1]], accuracy(strong & ~lucky), slack),
        _unbounded(accuracy(unbounded), len(inputs)),
        _steps(by_steps, slack),
        _zero(*zero_gradients(inputs, settings, progress=progress), slack),
    ]


def _one_step(one_step: float, strong: float, slack: float) -> Check:
    return Check(
        "one step beats many",
        one_step >= strong - slack,
        {"fgsm": one_step, f"pgd-{STEPS[-1]}-1": strong},
        "the gradient misleads after the first step, on a loss surface that is rugged; use AutoAttack, whose Square "
        "needs no gradient",
    )


def _noise(draws: int, lucky: float, strong: float, only_noise: float, slack: float) -> Check:
    return Check(
        "random noise beats the gradient",
        only_noise <= slack,
        {f"best of {draws} draws": lucky, f"pgd-{STEPS[-1]}-1": strong, "noise alone": only_noise},
        "blind search finds adversarial images that the gradient misses, so the gradient is useless; use attacks "
        "without gradients (Square) or through an approximation of the masking layer (BPDA)",
    )


def _unbounded(unbounded: float, n: int) -> Check:
    return Check(
        "an unbounded attack fails",
        unbounded <= max(UNBOUNDED, 1 / n),
        {"pgd-50-1 without a bound": unbounded},
        "an attack that may change every pixel at will must succeed: if it does not, it is the attack that fails, and "
        "no number at a smaller radius means anything",
    )


def _steps(by_steps: dict[int, float], slack: float) -> Check:
    rises = [by_steps[more] - by_steps[few] for few, more in pairwise(STEPS)]
    return Check(
        "accuracy rises with steps",
        max(rises) <= slack,
        {f"pgd-{steps}-1": found for steps, found in by_steps.items()},
        "more steps of the same attack must not do worse: the gradient is noisy, as in random defenses, which need "
        "averages over their draws (torchattacks:EOTPGD, autoattack-rand)",
    )


def _zero(zero_loss: float, zero_margin: float, slack: float) -> Check:
    return Check(
        "gradients are zero",
        max(zero_loss, zero_margin) <= slack,
        {"images without gradient of cross-entropy": zero_loss, "without gradient of the margin": zero_margin},
        "attacks have nothing to follow; of cross-entropy alone: the logits are so large that it has saturated, use "
        "apgd-dlr or cw-linf; of both: a rounding or saturated layer cuts the gradient",
    )


def _whole(inputs: EvalInputs) -> Threat:
    """A ball that holds the whole pixel range around every image."""
    size, norm = inputs.images[0].numel(), inputs.threat.norm
    eps = {"Linf": 1.0, "L2": math.sqrt(size), "L1": float(size)}[norm]
    return Threat(norm, eps, f"{eps:g}")


@torch.no_grad()
def after_noise(
    inputs: EvalInputs,
    still_correct: Tensor,
    *,
    draws: int,
    settings: EvalSettings = DEFAULTS,
    progress: Progress | None = None,
) -> Tensor:
    """Images that are classified correctly under each of several random perturbations.

    Under Linf each pixel moves by eps up or down, under L2 and L1 the direction is a normal or a Laplace one of full
    length: the boundary of the ball, where chance has most to find.

    Args:
        inputs: model, images, labels and threat.
        still_correct: bool [N], images to perturb.
        draws: number of perturbations of each.
        settings: batch size and seed.
        progress: called with the images done.

    Returns:
        bool [N] on the CPU.
    """
    judge = Attacker(inputs.model, inputs.threat).view
    tries = [_noisy(inputs.threat, torch.Generator().manual_seed(settings.seed))] * draws
    batches = tracked(inputs.batches(settings.batch_size), progress, f"{draws} random draws", len(inputs))
    kept = [
        survivors(tries, judge, batch.images, batch.targets, part.to(inputs.device))
        for batch, part in zip(batches, still_correct.split(settings.batch_size), strict=True)
    ]
    return torch.cat(kept).cpu()


def _noisy(threat: Threat, draw: torch.Generator) -> Attempt:
    """Perturbs images at random, to the boundary of the ball."""

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

    return attempt


def zero_gradients(
    inputs: EvalInputs, settings: EvalSettings = DEFAULTS, *, progress: Progress | None = None
) -> tuple[float, float]:
    """Share of the images that are classified correctly and whose input gradient is zero, every pixel of it.

    Returns:
        the share for cross-entropy, and the share for the margin of the logits, both of all images.
    """
    lost = [0, 0]
    for batch in tracked(inputs.batches(settings.batch_size), progress, "gradients of the inputs", len(inputs)):
        with torch.enable_grad(), attack_mode(inputs.model):
            pixels = batch.images.detach().clone().requires_grad_(True)
            logits = inputs.model(pixels).float()
            if not logits.requires_grad:  # nothing of the input reaches the outputs
                lost = [count + int(right(logits, batch.targets).sum()) for count in lost]
                continue
            correct = right(logits, batch.targets)
            losses = (
                nn.functional.cross_entropy(logits, batch.targets, reduction="sum"),
                margin(logits, batch.targets).sum(),
            )
            for place, loss in enumerate(losses):
                (gradient,) = torch.autograd.grad(loss, pixels, retain_graph=place == 0)
                none = gradient.flatten(1).abs().amax(dim=1) == 0
                lost[place] += int((none & correct).sum())
    return lost[0] / len(inputs), lost[1] / len(inputs)
