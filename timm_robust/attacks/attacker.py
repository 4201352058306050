"""Attacks through torchattacks, behind a guard that enforces the threat model whatever the attack did.

    Attacker(model, threat)(images, targets, "pgd", bn="eval", steps=10, alpha=2/255)

The guard handles what training code gets wrong around torchattacks 3.5 (each point has a test):

- the result lies inside the ball and inside [0, 1], and a NaN or infinite pixel falls back to the clean one;
- each module's mode and each parameter's `requires_grad` are restored, exception or not: torchattacks itself un-freezes
  frozen BatchNorm when it restores, and does not restore after an exception;
- BatchNorm follows the policy that the method asks for, during the attack only;
- no weight gradient is computed;
- attacks that reseed the global generators (APGD, FAB, Square) get a fresh seed and leave those generators alone;
- under fp16 the gradient is scaled, so that the gradient of a batch mean does not underflow to 0.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn
from torchattacks.attack import Attack

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.pgd import UniformStartFFGSM, WorstCaseAPGD
from timm_robust.attacks.steps import project, unit
from timm_robust.errors import UserError, unknown
from timm_robust.threat import Threat
from timm_robust.utils.random import preserve_rng_state

Autocast = Callable[[], AbstractContextManager[Any]]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


class _ContiguousGradient(torch.autograd.Function):
    """Gives attacks that `view` the gradient contiguous strides, though the network runs in channels_last."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()


class AttackView(nn.Module):
    """The model as an attack sees it: float32 logits, and modes that only the guard can change.

    The target is deliberately no sub-module: torchattacks' `train()` and `eval()` calls end here.
    """

    def __init__(self, target: nn.Module, autocast: Autocast = nullcontext, gradient_scale: float = 1.0) -> None:
        super().__init__()
        self.__dict__["target"] = target
        self.autocast = autocast
        self.gradient_scale = gradient_scale
        self.training = False

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.__dict__["target"].parameters(recurse)

    def forward(self, images: Tensor) -> Tensor:
        if images.is_contiguous():
            images = _ContiguousGradient.apply(images)
        with self.autocast():
            logits = self.__dict__["target"](images)
        logits = logits.float()
        return logits if self.gradient_scale == 1.0 else _ScaleGradient.apply(logits, self.gradient_scale)


_OWN_NAMES: dict[str, type[Attack]] = {"apgd": WorstCaseAPGD, "ffgsm": UniformStartFFGSM}


def attack_names() -> list[str]:
    """Attack names that `Attacker` accepts: torchattacks' classes in lower case."""
    classes = inspect.getmembers(torchattacks, lambda item: inspect.isclass(item) and issubclass(item, Attack))
    return sorted({name.lower() for name, _ in classes} | set(_OWN_NAMES))


def _attack_class(name: str) -> type[Attack]:
    if name.lower() in _OWN_NAMES:
        return _OWN_NAMES[name.lower()]
    for class_name, item in inspect.getmembers(torchattacks, inspect.isclass):
        if class_name.lower() == name.lower() and issubclass(item, Attack):
            return item
    raise unknown("attack", name, attack_names())


def _for_threat(name: str, threat: Threat, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The torchattacks name and arguments that implement attack `name` under the threat's norm."""
    if threat.norm == "L2":
        if name in ("fgsm", "ffgsm"):  # one step of full length along the gradient, from the image or from noise
            return "pgdl2", {"steps": 1, "alpha": threat.eps, "random_start": name == "ffgsm", **settings}
        if name == "pgd":
            return "pgdl2", settings
        if name == "tpgd":
            raise UserError("attack 'tpgd' knows the norm Linf only: use pgd for L2")
    if name in ("apgd", "apgdt", "fab", "square"):
        return name, {"norm": threat.norm, **settings}
    return name, settings


class Attacker:
    """Makes adversarial images for one model under one threat.

    Args:
        model: network from float images [N, C, H, W] in [0, 1] to logits [N, K].
        threat: ball that every result is projected into.
        autocast: factory of the context in which the model runs (mixed precision).
        gradient_scale: power of two that input gradients are multiplied by against underflow; exact, and without effect
            on sign and direction.

    Attributes:
        view: the model as attacks see it.
        extra_steps: PGD steps of eps / 2 on cross-entropy that follow every attack; raised by escalation.
    """

    def __init__(
        self, model: nn.Module, threat: Threat, *, autocast: Autocast = nullcontext, gradient_scale: float = 1.0
    ) -> None:
        self.model = model
        self.threat = threat
        self.autocast = autocast
        self.gradient_scale = gradient_scale
        self.view = self.view_of(model)
        self.extra_steps = 0
        self._attacks: dict[Any, Attack] = {}

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        attack: str | type[Attack] | Attack = "pgd",
        *context: Any,
        bn: str = "eval",
        eps_multiplier: float = 1.0,
        **settings: Any,
    ) -> Tensor:
        """Adversarial images for a batch.

        Args:
            images: float [N, C, H, W] in [0, 1].
            targets: int64 [N] classes, or float [N, K] soft labels where the attack's loss takes them.
            attack: a torchattacks name ("pgd", "fgsm", "ffgsm", "tpgd", "apgd", ...), a subclass of
                `torchattacks.attack.Attack`, or an instance (whose model must then be `attacker.view`).
            *context: further arguments of the attack's `forward`, such as a start for each image.
            bn: BatchNorm policy during the attack, see `attack_mode`.
            eps_multiplier: radius of the ball that the result is projected into, in eps; above 1 only for methods that
                train outside it.
            **settings: constructor arguments of the attack; `eps` is the threat's unless given.

        Returns:
            float [N, C, H, W], detached, inside the ball around `images` and inside [0, 1].
        """
        ready = attack if isinstance(attack, Attack) else self.build(attack, **settings)
        if isinstance(ready, torchattacks.PGDL2):
            images = images.contiguous()  # its `view` fails on channels_last strides
        with torch.enable_grad(), attack_mode(self.model, bn), _own_randomness(ready):
            adversarial = project(ready(images, targets, *context).detach(), images, self.threat, eps_multiplier)
            for _ in range(self.extra_steps):
                adversarial = self._step_on(adversarial, images, targets, eps_multiplier)
        return adversarial

    def view_of(self, network: nn.Module) -> AttackView:
        """Another network as attacks see it, such as an encoder: with this attacker's precision and gradient scale."""
        return AttackView(network, self.autocast, self.gradient_scale)

    def retarget(self, threat: Threat) -> None:
        """Switches to another threat. The attacks built for this one are dropped, or they would pile up."""
        self.threat = threat
        self._attacks.clear()

    def _step_on(self, adversarial: Tensor, images: Tensor, targets: Tensor, eps_multiplier: float) -> Tensor:
        """One more step of PGD from an attack's result."""
        adversarial.requires_grad_(True)
        loss = nn.functional.cross_entropy(self.view(adversarial), targets)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        direction = gradient.sign() if self.threat.norm == "Linf" else unit(gradient)
        return project(adversarial.detach() + self.threat.eps / 2 * direction, images, self.threat, eps_multiplier)

    def build(self, attack: str | type[Attack], **settings: Any) -> Attack:
        """The torchattacks object for a name or class, cached, so that a training loop builds it once.

        Constructor arguments `eps` and `gradient_scale` are this attacker's unless given.
        """
        if isinstance(attack, str):
            name, settings = _for_threat(attack.lower(), self.threat, settings)
            cls = _attack_class(name)
        else:
            cls = attack
        key = (cls, self.threat, *sorted((name, repr(value)) for name, value in settings.items()))
        if key not in self._attacks:
            accepted = inspect.signature(cls.__init__).parameters
            own = {"eps": self.threat.eps, "gradient_scale": self.gradient_scale}
            settings = {**{name: value for name, value in own.items() if name in accepted}, **settings}
            unexpected = [name for name in settings if name not in accepted]
            if unexpected:
                raise unknown(f"setting of attack {cls.__name__}", unexpected[0], [n for n in accepted if n != "self"])
            # weakly, since torchattacks leaves circular garbage behind that holds what it is given
            self._attacks[key] = cls(weakref.proxy(self.view), **settings)
        return self._attacks[key]


@contextmanager
def _own_randomness(attack: Attack) -> Iterator[None]:
    """Gives attacks that call `torch.manual_seed` a fresh seed, and restores the global generators afterwards."""
    seeded = [item for item in (attack, *attack._attacks.values()) if hasattr(item, "seed")]
    if not seeded:
        yield
        return
    for item in seeded:
        item.seed = int(torch.randint(2**31 - 1, ()))
    with preserve_rng_state():
        yield
