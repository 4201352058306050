"""Attempts of an attack: one function for each start, restart or constant that is tried."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn
from torchattacks.attack import Attack

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.attacker import Attacker
from timm_robust.attacks.l1 import PGDL1, project_l1
from timm_robust.attacks.pgd import ObjectivePGD
from timm_robust.attacks.steps import project
from timm_robust.errors import UserError
from timm_robust.evaluation.attack_spec import CLASSES_NEEDED, AttackSpec, torchattacks_settings
from timm_robust.evaluation.autoattack_package import implementation
from timm_robust.utils.random import preserve_rng_state

Attempt = Callable[[Tensor, Tensor], Tensor]
"""From images [N, C, H, W] and targets [N] to adversarial images, inside the ball and inside [0, 1]."""

CW_CONSTANTS = (0.1, 1.0, 10.0, 100.0)
"""Weights of the misclassification term; each is tried on the images still correct, instead of the paper's search."""

MARGIN_STEPS = 50


class MarginPGD(ObjectivePGD):
    """PGD on the margin of Carlini and Wagner: the largest other logit minus that of the target.

    N. Carlini, D. Wagner, Towards evaluating the robustness of neural networks, S&P 2017, arXiv:1608.04644, f6 of
    section V; A. Madry et al., ICLR 2018, arXiv:1706.06083, section 5 runs it under Linf. Linear in the logits, so that
    its gradient does not vanish where cross-entropy saturates.
    """

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = MARGIN_STEPS
    ) -> None:
        super().__init__(model, eps, alpha, steps)

    def start(self, images: Tensor) -> Tensor:
        return (images + (torch.rand_like(images) * 2 - 1) * self.eps).clamp_(0, 1)

    def objective(self, logits: Tensor, labels: Tensor) -> Tensor:
        return margin(logits, labels).sum()


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Largest other logit minus the target's, [N]; positive where the image is misclassified."""
    right = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], float("-inf"))
    return others.max(dim=1).values - right


def attempts(measure: AttackSpec, attacker: Attacker, num_classes: int) -> list[Attempt]:
    """The attempts of an attack, in order; each needs only the images that are still correct.

    The step size of PGD is eps / 4: 2/255 at 8/255. Results are projected into the ball.

    Args:
        measure: neither `clean` nor a version of AutoAttack.
        attacker: attacker of the model, under the threat.
        num_classes: number of the model's classes.
    """
    eps, l1 = attacker.threat.eps, attacker.threat.norm == "L1"
    if measure.name == "fgsm":
        settings = {"steps": 1, "alpha": eps, "random_start": False}
        return [_crafted(attacker, PGDL1, settings) if l1 else _crafted(attacker, "fgsm", {})]
    if measure.name.startswith("pgd-"):
        settings = {"steps": measure.steps, "alpha": eps / 4, "random_start": True}
        return [_crafted(attacker, PGDL1 if l1 else "pgd", settings)] * measure.restarts
    if measure.name == "cw":
        return [_crafted(attacker, torchattacks.CW, {"c": c, "steps": 100}) for c in CW_CONSTANTS]
    if measure.name == "cw-linf":
        return [_crafted(attacker, MarginPGD, {"alpha": eps / 4})]
    if measure.name in ("apgd-ce", *CLASSES_NEEDED):
        return [_apgd(measure.name, attacker, num_classes)]
    if not measure.attack:
        raise ValueError(f"{measure.name} is not run attempt by attempt")
    settings = torchattacks_settings(measure, attacker.threat, num_classes)
    return [_guarded(measure.name, _crafted(attacker, getattr(torchattacks, measure.attack), settings))]


def _crafted(attacker: Attacker, attack: str | type[Attack], settings: dict[str, Any]) -> Attempt:
    def craft(images: Tensor, targets: Tensor) -> Tensor:
        if not isinstance(attack, str):
            images = images.contiguous()  # some call `view`
        adversarial = attacker(images, targets, attack, **settings)
        if (
            attacker.threat.norm == "L1"
        ):  # the guard projects into the L2 ball of this radius, which contains the L1 ball
            adversarial = project_l1(adversarial, images, attacker.threat.eps)
        return adversarial

    return craft


def _guarded(name: str, attempt: Attempt) -> Attempt:
    """Turns an exception of a third-party attack into a UserError of one sentence."""

    def guarded(images: Tensor, targets: Tensor) -> Tensor:
        try:
            return attempt(images, targets)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{name} failed on this model and these images: {type(error).__name__}: {first}") from error

    return guarded


class _Mute:
    """Silent logger, since the package's warns of zero gradients."""

    def log(self, message: str) -> None:
        pass

    warning = log


def _apgd(name: str, attacker: Attacker, num_classes: int) -> Attempt:
    """APGD of the installed AutoAttack, with the settings that AutoAttack gives it.

    F. Croce, M. Hein, ICML 2020, arXiv:2003.01690, section 4: 100 iterations; under L1 (arXiv:2103.01208) radii of 3, 2
    and 1 eps one after the other, five restarts, five targets.
    """
    base = importlib.import_module(f"{implementation()}.autopgd_base")
    threat, l1 = attacker.threat, attacker.threat.norm == "L1"

    def attempt(images: Tensor, targets: Tensor) -> Tensor:
        images = images.contiguous()
        device = images.device
        settings: dict[str, Any] = {
            "norm": threat.norm, "eps": threat.eps, "n_iter": 100, "rho": 0.75, "device": device, "logger": _Mute(),
            "use_largereps": l1, "n_restarts": 5 if l1 else 1, "seed": int(torch.randint(2**31 - 1, ())),
        }  # fmt: skip
        if name == "apgd-t":
            n_targets = min(5 if l1 else 9, num_classes - 1)
            settings["n_restarts"] = 1
            attack = base.APGDAttack_targeted(attacker.view, n_target_classes=n_targets, **settings)
        else:
            attack = base.APGDAttack(attacker.view, loss=name.removeprefix("apgd-"), **settings)
        with torch.no_grad(), attack_mode(attacker.model), preserve_rng_state():
            adversarial = attack.perturb(images, targets).detach()
        if l1:
            return project_l1(adversarial, images, threat.eps)
        return project(adversarial, images, threat)

    return attempt
