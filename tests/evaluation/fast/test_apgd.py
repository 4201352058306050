"""APGD against the reference, step by step in float64."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from tests.support import all_lanes
from timm_robust.evaluation.fast import apgd, draws
from timm_robust.threat import Threat

LINF, L2 = Threat("Linf", 1 / 32, "1/32"), Threat("L2", 0.25, "0.25")


def test_apgd_checks_its_step_where_the_reference_does():
    assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_apgd_walks_as_the_reference(problem, net, threat, loss, double):
    shared = problem(Threat(threat.norm, threat.eps / 4, ""))
    attack = apgd.APGD(shared, loss, jobs=1, stream=1, steps=60)
    state = all_lanes(attack, shared)
    kind = APGDAttack_targeted if loss == "dlr-targeted" else APGDAttack
    reference = kind(net, n_iter=60, norm=threat.norm, eps=shared.threat.eps, device="cpu")
    reference.loss = loss
    reference.y_target = shared.ranks[:, 1]
    reference.init_hyperparam(shared.images)
    best, still_correct, best_loss, _ = reference.attack_single_run(
        shared.images, shared.targets, x_init=state.x.contiguous()
    )
    for _ in range(61):
        assert not state.done.any()
        attack.step(state)
    assert state.done.all() and still_correct.any()
    assert torch.equal(~state.hit, still_correct)
    torch.testing.assert_close(state.best_loss, best_loss)
    torch.testing.assert_close(state.best, best)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_apgd_starts_on_the_sphere(norm):
    keys = draws.key(0, torch.arange(5))
    size = apgd.norms(apgd.noise(keys, torch.zeros(5, 3, 8, 8, dtype=torch.float64), norm), norm)
    torch.testing.assert_close(size, torch.ones_like(size))
