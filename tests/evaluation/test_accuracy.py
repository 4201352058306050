"""Verdicts of attacks: random generators left alone, margins climbed, and unfit threats refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support import labelled, network
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import robust_correct_of
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.preconditions import require_deterministic
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 3 / 255, "3/255"), Threat("L2", 0.15, "0.15"), Threat("L1", 1.5, "1.5")


def test_verdicts_leave_the_generator_alone():
    model = network()
    images, targets = labelled(model, 12)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name in ("apgd-ce", "torchattacks:Square:n_queries=5", "cw-linf"):
        robust_correct_of(EvalInputs(model, images, targets, LINF), parse_attack(name))
    require_deterministic(model, images)
    assert torch.equal(torch.rand(3), expected)


def test_cw_linf_climbs_the_margin_where_cross_entropy_has_saturated():
    """Logits times 10,000: the gradient of cross-entropy is zero, that of the margin is not."""

    class Hot(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x) * 1e4

    model = Hot().eval()
    images, targets = labelled(model, 12)
    pgd = robust_correct_of(EvalInputs(model, images, targets, LINF), parse_attack("pgd-20-1"))
    assert robust_correct_of(EvalInputs(model, images, targets, LINF), parse_attack("cw-linf")).sum() < pgd.sum()


@pytest.mark.parametrize(
    ("name", "threat", "classes", "message"),
    [
        ("cw", LINF, 10, "cw minimises the L2 norm, the threat is Linf 3/255: use cw-linf"),
        ("cw-linf", L2, 10, "cw-linf moves in the norm Linf, the threat is L2 0.15: use cw"),
        ("torchattacks:MIFGSM", L2, 10, "torchattacks:MIFGSM moves in the norm Linf, .* use torchattacks:PGDL2"),
        ("torchattacks:PGDL2", LINF, 10, "moves in the norm L2, the threat is Linf 3/255: use torchattacks:PGD"),
        ("torchattacks:Square", L1, 10, "moves in the norm Linf or L2, the threat is L1 1.5: use apgd-ce"),
        ("apgd-dlr", LINF, 2, "apgd-dlr needs at least 3 classes, this model has 2: use apgd-ce"),
        ("apgd-t", LINF, 3, "apgd-t needs at least 4 classes, this model has 3: use apgd-dlr or apgd-ce"),
    ],
)
def test_what_a_threat_or_few_classes_do_not_allow(name, threat, classes, message):
    model = network(classes)
    images, targets = labelled(model, 4)
    with pytest.raises(UserError, match=message):
        robust_correct_of(EvalInputs(model, images, targets, threat), parse_attack(name))
