"""Names of measures, such as `pgd-50-10` or `torchattacks:MIFGSM:steps=20`, and what each one stands for."""

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
"""Versions of AutoAttack; `timm_robust.evaluation.autoattack` runs them."""

CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}
"""The DLR loss takes the third largest logit, its targeted form the fourth."""

PREFIX = "torchattacks:"


@dataclass(frozen=True)
class AttackSpec:
    """What to measure.

    Attributes:
        name: `clean`; `fgsm`; `pgd-K-R` (K steps, R restarts, each from uniform noise); `apgd-ce`, `apgd-dlr`, `apgd-t`
            (APGD with 100 steps, as AutoAttack runs it); `cw` (L2) and `cw-linf`; `autoattack`, `autoattack-plus`,
            `autoattack-rand`; `torchattacks:NAME:key=value,...`, any attack of torchattacks.
        steps, restarts: where the name says them.
        attack: the class's name in torchattacks, for those.
        settings: constructor arguments of that class.
    """

    name: str
    steps: int = 0
    restarts: int = 1
    attack: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


def parse_attack(name: str) -> AttackSpec:
    """`pgd` means pgd-50-10; see `AttackSpec`.

    Raises:
        UserError: anything else.
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


def ensemble_version(measure: AttackSpec) -> str:
    """Which version of AutoAttack one of `ENSEMBLES` is."""
    return measure.name.partition("-")[2] or "standard"


def torchattacks_names() -> list[str]:
    """Classes of torchattacks that can be built from a model and plain settings."""
    return sorted(
        name
        for name, item in inspect.getmembers(torchattacks, inspect.isclass)
        if issubclass(item, Attack) and name != "AutoAttack" and not _needs_more(item)
    )


def _needs_more(cls: type[Attack]) -> bool:
    """Whether it is a wrapper, which wants other attacks or data."""
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


def torchattacks_settings(measure: AttackSpec, threat: Threat, num_classes: int) -> dict[str, Any]:
    """Constructor arguments: the threat's radius and norm, a step that keeps its proportion to it, and those given."""
    parameters = inspect.signature(getattr(torchattacks, measure.attack).__init__).parameters
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
    return {**settings, **dict(measure.settings)}


def require_possible(measure: AttackSpec, threat: Threat, num_classes: int) -> None:
    """Refuses what is not defined for a norm or for so few classes, before anything is run.

    Raises:
        UserError: which, and what to take instead.
    """
    needed = CLASSES_NEEDED.get(measure.name, 2)
    if num_classes < needed:
        other = "apgd-dlr or apgd-ce" if num_classes == 3 else "apgd-ce"
        raise UserError(f"{measure.name} needs at least {needed} classes, this model has {num_classes}: use {other}")
    if measure.name == "cw" and threat.norm != "L2":
        other = "cw-linf" if threat.norm == "Linf" else "apgd-ce"
        raise UserError(f"cw minimises the L2 norm, the threat is {threat}: use {other}, or norm L2")
    if measure.name == "cw-linf" and threat.norm != "Linf":
        other = "cw" if threat.norm == "L2" else "apgd-dlr"
        raise UserError(f"cw-linf moves in the norm Linf, the threat is {threat}: use {other}")
    norms = _norms(measure.attack) if measure.attack else None
    if norms and threat.norm not in norms:
        other = {"Linf": "torchattacks:PGD", "L2": "torchattacks:PGDL2"}.get(threat.norm, "apgd-ce")
        raise UserError(
            f"{PREFIX}{measure.attack} moves in the norm {' or '.join(norms)}, the threat is {threat}: use {other}"
        )


def _norms(attack: str) -> tuple[str, ...] | None:
    """Norms whose radius an attack of torchattacks is given; None for those that look for a smallest perturbation."""
    parameters = inspect.signature(getattr(torchattacks, attack).__init__).parameters
    if "norm" in parameters:
        return ("Linf", "L2")
    if "eps" in parameters or "max_epsilon" in parameters:
        return ("L2",) if attack.endswith("L2") else ("Linf",)
    return None
