"""FAB against the reference, step by step in float64."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT

from tests.support import all_lanes
from timm_robust.evaluation.fast import fab
from timm_robust.threat import Threat

LINF, L2 = Threat("Linf", 1 / 32, "1/32"), Threat("L2", 0.25, "0.25")


# attacks


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("targeted", [True, False])
def test_fab_walks_as_the_reference(problem, net, threat, targeted, double):
    shared = problem(Threat(threat.norm, threat.eps / 16, ""))  # few falls, long walks
    attack = fab.FAB(shared, targeted, jobs=1, stream=1, steps=30)
    state = all_lanes(attack, shared)
    asked = []

    def record(images):
        asked.append(images.detach().clone())
        return net(images)

    reference = FABAttack_PT(record, norm=threat.norm, n_iter=30, eps=threat.eps, device="cpu")
    reference.target_class = 2
    with torch.no_grad():
        reference.attack_single_run(shared.images, shared.targets, is_targeted=targeted)
        last = asked[-1]
        crossed = net(last).argmax(1) != shared.targets
    expected = torch.where(crossed[:, None, None, None], shared.images + 0.9 * (last - shared.images), last)
    finals = torch.full_like(shared.images, -1)
    for _ in range(61):
        attack.step(state)
        new = state.done & (finals[:, 0, 0, 0] < 0)
        finals[new] = state.x[new]
    assert state.done.all() and crossed.any()
    torch.testing.assert_close(finals, expected)


# verdicts


def test_a_compiled_graph_is_asked_for_one_gradient_only(problem):
    """It frees its buffers in the backward pass, and untargeted FAB takes one for each class."""
    case = problem(LINF)
    asked = []

    def compiled(images):
        asked.append(images)
        return case.network.module(images)

    case.network.compiled, case.network.full = compiled, len(case.images)
    for targeted in (True, False):
        attack = fab.FAB(case, targeted, 1, 1, 3)
        attack.step(all_lanes(attack, case))
        assert len(asked) == 1
