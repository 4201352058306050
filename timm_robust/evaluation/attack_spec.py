"""Attacks by name, such as `pgd-50-10` or `torchattacks:MIFGSM:steps=20`, and what each name means."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torchattacks
from torchattacks.attack import Attack

from timm_robust.errors import UserError, nearest, unknown
from timm_robust.threat import Threat

EXAMPLES = (
    "clean", "fgsm", "pgd-10-1", "pgd-50-10", "apgd-ce", "apgd-dlr", "apgd-t", "cw", "cw-linf", "autoattack",
    "autoattack-plus", "autoattack-rand", "torchattacks:MIFGSM",
)  # fmt: skip

ENSEMBLES = ("autoattack", "autoattack-plus", "autoattack-rand")
"""Versions of AutoAttack, which `timm_robust.evaluation.autoattack` runs."""

CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}
"""The DLR loss takes the third largest logit, its targeted form the fourth."""

PREFIX = "torchattacks:"


@dataclass(frozen=True)
class AttackSpec:
    """An attack by name, or none.

    Attributes:
        name: `clean`; `fgsm`; `pgd-K-R` (K steps, R restarts, each from uniform noise); `apgd-ce`, `apgd-dlr`, `apgd-t`
            (APGD with 100 steps, as AutoAttack runs it); `cw` (L2) and `cw-linf`; `autoattack`, `autoattack-plus`,
            `autoattack-rand`; `torchattacks:NAME:key=value,...`, any attack of torchattacks.
        steps, restarts: of `fgsm` and `pgd-K-R`.
        attack: class name in torchattacks, for `torchattacks:NAME`.
        settings: constructor arguments of that class.
    """

    name: str
    steps: int = 0
    restarts: int = 1
    attack: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


CLEAN = AttackSpec("clean")


def parse_attack(name: str) -> AttackSpec:
    """The attack of a name; `pgd` means pgd-50-10, all others are those of `AttackSpec`.

    Raises:
        UserError: an unknown name.
    """
    text = name.strip().lower()
    if text.startswith(PREFIX):
        return _of_torchattacks(name.strip()[len(PREFIX) :])
    if text == "fgsm":
        return AttackSpec("fgsm", steps=1)
    if text == "pgd":
        text = "pgd-50-10"
    if text in EXAMPLES and not text.startswith("pgd"):
        return AttackSpec(text)
    match = re.fullmatch(r"pgd-([1-9]\d*)(?:-([1-9]\d*))?", text)
    if match:
        steps, restarts = int(match[1]), int(match[2] or 1)
        return AttackSpec(f"pgd-{steps}-{restarts}", steps, restarts)
    close = [known for known in EXAMPLES if text and known.startswith(text)]
    close += [PREFIX + known for known in torchattacks_names() if known.lower() == text]
    close += nearest(name, ("pgd", *EXAMPLES), n=1)
    raise UserError(
        f"unknown attack {name!r}: expected clean, fgsm, autoattack or pgd-STEPS-RESTARTS such as pgd-50-10, or "
        "apgd-ce, apgd-dlr, apgd-t, cw, cw-linf, torchattacks:NAME" + (f"; did you mean {close[0]}?" if close else "")
    )


def ensemble_version(spec: AttackSpec) -> str:
    """Version of AutoAttack of one of `ENSEMBLES`."""
    return spec.name.partition("-")[2] or "standard"


def torchattacks_names() -> list[str]:
    """Classes of torchattacks that can be built from a model and plain settings."""
    return sorted(
        name
        for name, item in inspect.getmembers(torchattacks, inspect.isclass)
        if issubclass(item, Attack) and name != "AutoAttack" and not _needs_more(item)
    )


def _needs_more(cls: type[Attack]) -> bool:
    """Whether a class is a wrapper, which takes other attacks or data."""
    wanted = list(inspect.signature(cls.__init__).parameters.values())[2:]
    return "model" not in inspect.signature(cls.__init__).parameters or any(
        one.default is inspect.Parameter.empty for one in wanted
    )


def _of_torchattacks(text: str) -> AttackSpec:
    given, _, rest = text.partition(":")
    by_lower = {name.lower(): name for name in torchattacks_names()}
    if given.lower() == "autoattack":
        raise UserError("torchattacks:AutoAttack is a shortened copy, seeded by the clock: expected autoattack")
    if given.lower() not in by_lower:
        raise unknown("attack of torchattacks", given, by_lower.values())
    attack = by_lower[given.lower()]
    accepted = list(inspect.signature(getattr(torchattacks, attack).__init__).parameters)[2:]
    settings: dict[str, Any] = {}
    for item in re.split(r",(?![^(\[]*[)\]])", rest) if rest else []:
        key, equals, value = item.strip().partition("=")
        if not equals:
            raise UserError(f"setting {item!r} of {PREFIX}{attack} is no assignment: expected key=value")
        if key in ("eps", "max_epsilon", "norm"):
            raise UserError(f"setting {key!r} of {PREFIX}{attack} is the threat's: pass eps and norm beside the attack")
        if key not in accepted:
            raise unknown(f"setting of {PREFIX}{attack}", key, [one for one in accepted if one not in ("eps", "norm")])
        settings[key] = _value(value)
    shown = ",".join(f"{key}={value}" for key, value in settings.items())
    return AttackSpec(PREFIX + attack + (f":{shown}" if shown else ""), attack=attack, settings=tuple(settings.items()))


def _value(text: str) -> Any:
    """A Python literal, a fraction such as 2/255, else text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        return text


def torchattacks_settings(spec: AttackSpec, threat: Threat, num_classes: int) -> dict[str, Any]:
    """Constructor arguments: radius and norm of the threat, a step in proportion to the radius, and those of `spec`."""
    parameters = inspect.signature(getattr(torchattacks, spec.attack).__init__).parameters
    settings: dict[str, Any] = {}
    for name in ("eps", "max_epsilon"):
        if name in parameters:
            settings[name] = threat.eps
            if "alpha" in parameters:
                settings["alpha"] = parameters["alpha"].default * threat.eps / parameters[name].default
    if "norm" in parameters:
        settings["norm"] = threat.norm
    if "n_classes" in parameters:
        settings["n_classes"] = num_classes
    return {**settings, **dict(spec.settings)}


def require_possible(spec: AttackSpec, threat: Threat, num_classes: int) -> None:
    """Refuses an attack that is not defined for a norm or for so few classes, before anything is run.

    Raises:
        UserError: names the attack, and one to use instead.
    """
    needed = CLASSES_NEEDED.get(spec.name, 2)
    if num_classes < needed:
        other = "apgd-dlr or apgd-ce" if num_classes == 3 else "apgd-ce"
        raise UserError(f"{spec.name} needs at least {needed} classes, this model has {num_classes}: use {other}")
    if spec.name == "cw" and threat.norm != "L2":
        other = "cw-linf" if threat.norm == "Linf" else "apgd-ce"
        raise UserError(f"cw minimises the L2 norm, the threat is {threat}: use {other}, or norm L2")
    if spec.name == "cw-linf" and threat.norm != "Linf":
        other = "cw" if threat.norm == "L2" else "apgd-dlr"
        raise UserError(f"cw-linf moves in the norm Linf, the threat is {threat}: use {other}")
    norms = _norms(spec.attack) if spec.attack else None
    if norms and threat.norm not in norms:
        other = {"Linf": "torchattacks:PGD", "L2": "torchattacks:PGDL2"}.get(threat.norm, "apgd-ce")
        raise UserError(
            f"{PREFIX}{spec.attack} moves in the norm {' or '.join(norms)}, the threat is {threat}: use {other}"
        )


def _norms(attack: str) -> tuple[str, ...] | None:
    """Norms whose radius an attack of torchattacks takes; None for those that search for a smallest perturbation."""
    parameters = inspect.signature(getattr(torchattacks, attack).__init__).parameters
    if "norm" in parameters:
        return ("Linf", "L2")
    if "eps" in parameters or "max_epsilon" in parameters:
        return ("L2",) if attack.endswith("L2") else ("Linf",)
    return None
