"""Attacks through torchattacks, behind a guard that enforces the threat model; what plugin authors import."""

from timm_robust.attacks.attack_mode import attack_mode, frozen_statistics
from timm_robust.attacks.attacker import Attacker, AttackView, attack_names
from timm_robust.attacks.pgd import GaussianStartPGD, ObjectivePGD, WorstCaseAPGD
from timm_robust.attacks.steps import clip_linf, corner_start, gaussian_start, project, signed_step, uniform_start, unit

__all__ = [
    "AttackView",
    "Attacker",
    "GaussianStartPGD",
    "ObjectivePGD",
    "WorstCaseAPGD",
    "attack_mode",
    "attack_names",
    "clip_linf",
    "corner_start",
    "frozen_statistics",
    "gaussian_start",
    "project",
    "signed_step",
    "uniform_start",
    "unit",
]
