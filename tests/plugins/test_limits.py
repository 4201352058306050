"""Limits of several methods: norms they refuse, and the ball their attacks keep by themselves."""

from __future__ import annotations

import pytest
import torch
from timm_robust_plugins.gat.gat import GuidedStep, squared_distance
from timm_robust_plugins.seat.seat import LinearityStep
from timm_robust_plugins.zerograd.multigrad import MultiGradFGSM
from timm_robust_plugins.zerograd.zerograd import ZeroGradFGSM

from tests.support import EPS
from timm_robust.attacks.attacker import Attacker
from timm_robust.errors import UserError
from timm_robust.testing import Bench

LINF_ONLY = ("n-fgsm", "free", "gradalign", "zerograd", "multigrad", "gat", "nuat", "fgsm-mep", "seat", "atas", "moat")


@pytest.mark.parametrize("method", LINF_ONLY)
def test_other_norms_are_refused(train_small, tmp_path, method):
    with pytest.raises(UserError, match=f"method '{method}' knows the norm Linf only, not L2"):
        train_small(method, norm="L2")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "attack",
    [
        (LinearityStep, {"alpha": EPS, "noise": EPS, "weight": 0.6, "attack_loss": "margin", "per_sample": True}),
        (ZeroGradFGSM, {"alpha": 2 * EPS, "quantile": 0.35}),
        (MultiGradFGSM, {"alpha": 2 * EPS, "starts": 3}),
        (GuidedStep, {"alpha": EPS, "noise": EPS / 2, "distance": squared_distance}),
    ],
    ids=lambda attack: attack[0].__name__,
)
def test_attacks_keep_to_the_ball_without_the_guards_help(attack):
    cls, settings = attack
    bench = Bench.make("pgd")
    images = bench.batch.images.mul(1.4).sub(0.2).clamp(0, 1)
    torch.manual_seed(0)
    found = cls(Attacker(bench.model, bench.run.threat).view, eps=EPS, **settings)(images, bench.batch.targets)
    assert (found - images).abs().max() <= EPS + 1e-6 and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("method", ["mart", "hat", "lbgat"])
def test_other_norms_are_refused_before_a_teacher_is_trained(train_small, tmp_path, method):
    with pytest.raises(UserError, match=f"method '{method}' knows the norm Linf only, not L2"):
        train_small(method, norm="L2")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert not (tmp_path / "run/helper").exists(), "refused before a teacher is trained"
