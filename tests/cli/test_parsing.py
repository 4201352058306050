"""Options of several values, pairs, and options by method."""

from __future__ import annotations

import pytest

from timm_robust.cli import by_method, pairs, spread
from timm_robust.errors import UserError


def test_spreading_of_several_values():
    assert spread(["--set", "a=1", "b=2", "--seed", "3"]) == ["--set", "a=1", "--set", "b=2", "--seed", "3"]
    assert spread(["-o", "a=1"]) == ["-o", "a=1"]
    assert spread(["-o"]) == ["-o"]
    assert spread(["-o", "--seed", "1"]) == ["-o", "--seed", "1"]
    assert pairs(["a=1", "b=[1,2]", "c=x=y", "d=8/255"], "-o") == {"a": 1, "b": [1, 2], "c": "x=y", "d": "8/255"}
    with pytest.raises(UserError):
        pairs(["=3"], "-o")


def test_options_by_method():
    assert by_method(["moat.stages=r2", "trades.beta=5", "trades.steps=1"]) == {
        "moat": {"stages": "r2"},
        "trades": {"beta": 5, "steps": 1},
    }
    for wrong in ("beta=5", ".beta=5", "trades.=5", "trades.beta"):
        with pytest.raises(UserError):
            by_method([wrong])
