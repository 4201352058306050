"""Lists, assignments and their owners, as users type them."""

from __future__ import annotations

import sys

import pytest

from timm_robust.cli import main
from timm_robust.cli.parsing import by_owner, expand_lists, parse_int, parse_pairs, split_commas
from timm_robust.errors import UserError


@pytest.mark.parametrize(
    ("typed", "expanded"),
    [
        (["--set", "a=1", "b=2", "--seed", "3"], ["--set", "a=1", "--set", "b=2", "--seed", "3"]),
        (["-o", "a=1"], ["-o", "a=1"]),
        (["-o"], ["-o"]),
        (["-o", "--seed", "1"], ["-o", "--seed", "1"]),
        (["-o", "--set", "a=1"], ["-o", "--set", "a=1"]),
        (["--json"], ["--json", "-"]),
        (["--json", "--seed", "1"], ["--json", "-", "--seed", "1"]),
        (["--json", "-"], ["--json", "-"]),
        (["--json", "FILE", "--set", "a=1", "--json"], ["--json", "FILE", "--set", "a=1", "--json", "-"]),
    ],
    ids=" ".join,
)
def test_values_in_a_row_and_values_left_out(typed, expanded):
    assert expand_lists(typed, {"--set", "-o"}, {"--json"}) == expanded


def test_lists_by_comma():
    assert split_commas(["a,b", " c "]) == ["a", "b", "c"] and split_commas(None) is None
    assert split_commas(["torchattacks:MIFGSM:steps=5,decay=1,clean"]) == [
        "torchattacks:MIFGSM:steps=5,decay=1",
        "clean",
    ]
    assert split_commas(["torchattacks:Jitter:scale=(1,2),clean"]) == ["torchattacks:Jitter:scale=(1,2)", "clean"]


def test_assignments():
    typed = ["a=1", "b=[1,2]", "c=x=y", "d=8/255"]
    assert parse_pairs(typed, "-o") == {"a": 1, "b": [1, 2], "c": "x=y", "d": "8/255"}
    assert parse_pairs([",".join(typed)], "-o") == parse_pairs(typed, "-o")
    assert parse_pairs(["points=0:0,0.4:1,awp.gamma=0.1"], "--set") == {"points": "0:0,0.4:1", "awp.gamma": 0.1}
    for wrong in ("=3", "a"):
        with pytest.raises(UserError, match="no assignment"):
            parse_pairs([wrong], "-o")


def test_options_by_owner():
    options = {"moat.stages": "r2", "trades.beta": 5, "trades.steps": 1}
    assert by_owner(options) == {"moat": {"stages": "r2"}, "trades": {"beta": 5, "steps": 1}}
    for wrong in ("beta", ".beta", "trades."):
        with pytest.raises(UserError, match="names no method"):
            by_owner({wrong: 5})


def test_integers():
    assert parse_int("12", "seed") == 12
    with pytest.raises(UserError, match="seed 'a' is no whole number"):
        parse_int("a", "seed")


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        (["evaluate", "run", "--n-examples", "5"], "--examples"),
        (["submit", "run", "--out", "there"], "--output"),
        (["train", "--methot", "sat"], "--method"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_an_unknown_option_suggests_the_nearest(typed, nearest, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["timm-robust", *typed])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and nearest in capsys.readouterr().err.partition("No such option")[2]
