"""Attacks through torchattacks, behind a guard that enforces the threat; what a plugin author imports."""

from timm_robust.attacks.attack_mode import attack_mode, frozen_statistics
from timm_robust.attacks.attacker import Attacker, AttackView, attack_names
from timm_robust.attacks.pgd import WorstCaseAPGD
from timm_robust.attacks.steps import project, signed_step

__all__ = [
    "AttackView",
    "Attacker",
    "WorstCaseAPGD",
    "attack_mode",
    "attack_names",
    "frozen_statistics",
    "project",
    "signed_step",
]
