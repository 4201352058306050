"""Attacks by name: what names mean, and wrong ones."""

from __future__ import annotations

import pytest

from timm_robust.errors import UserError
from timm_robust.evaluation.attack_spec import EXAMPLES, AttackSpec, parse_attack, torchattacks_names
from timm_robust.threat import Threat


def test_names_of_pgd():
    assert parse_attack("pgd").name == "pgd-50-10"
    assert (parse_attack("PGD-20").steps, parse_attack("pgd-20").restarts) == (20, 1)
    for wrong in ("pgd-0-1", "pgd-a", "", "auto"):
        with pytest.raises(UserError):
            parse_attack(wrong)


LINF, L2, L1 = Threat("Linf", 3 / 255, "3/255"), Threat("L2", 0.15, "0.15"), Threat("L1", 1.5, "1.5")


def test_names():
    for name in [one for one in EXAMPLES if one.startswith(("clean", "apgd", "cw", "autoattack"))]:
        assert parse_attack(name.upper()) == AttackSpec(name)
    given = parse_attack("torchattacks:mifgsm:steps=20,decay=0.5,alpha=2/255")
    assert given.attack == "MIFGSM"
    assert dict(given.settings) == {"steps": 20, "decay": 0.5, "alpha": pytest.approx(2 / 255)}
    assert given.name.startswith("torchattacks:MIFGSM:steps=20,decay=0.5,alpha=")
    assert parse_attack(given.name) == given
    assert dict(parse_attack("torchattacks:Pixle:x_dimensions=(2,10),restarts=3").settings) == {
        "x_dimensions": (2, 10), "restarts": 3,
    }  # fmt: skip
    assert {"PGD", "CW", "Square", "JSMA"} <= set(torchattacks_names())
    assert not {"AutoAttack", "MultiAttack", "LGV"} & set(torchattacks_names())
    for name in torchattacks_names():
        assert parse_attack(f"torchattacks:{name}").attack == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchattacks:MIFGSN", "unknown attack of torchattacks 'MIFGSN': did you mean MIFGSM"),
        ("torchattacks:AutoAttack", "expected autoattack"),
        ("torchattacks:LGV", "unknown attack of torchattacks 'LGV'"),
        ("torchattacks:PGD:stepz=3", "unknown setting of torchattacks:PGD 'stepz': did you mean steps"),
        ("torchattacks:PGD:steps", "'steps' of torchattacks:PGD is no assignment: expected key=value"),
        ("torchattacks:PGD:eps=0.1", "'eps' of torchattacks:PGD is the threat's"),
        ("mifgsm", "did you mean torchattacks:MIFGSM"),
        ("apgd", "did you mean apgd-"),
        ("pgdx", "did you mean pgd"),
        ("autoatack", "did you mean autoattack"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UserError, match=message):
        parse_attack(name)
