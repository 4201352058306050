"""Options derived from settings: spellings, help, and values of the command line and of YAML files."""

from __future__ import annotations

import pytest
import typer

from timm_robust.api.settings import SETTINGS, SHARED
from timm_robust.cli.app import app
from timm_robust.cli.arguments import FILE, arguments_of
from timm_robust.errors import UserError

COMMANDS = typer.main.get_command(app).commands


def options(command: str) -> dict[str, list[str]]:
    """The spellings of a command's options, by parameter."""
    return {one.name: [*one.opts, *one.secondary_opts] for one in COMMANDS[command].params}


def test_train_has_an_option_for_each_setting():
    spellings = options("train")
    assert set(spellings) - {"config", "help"} == set(SETTINGS)
    assert spellings["method_args"] == ["--option", "-o"] and spellings["recipe_args"] == ["--set"]
    assert spellings["channels_last"] == ["--channels-last", "--no-channels-last"]
    assert spellings["resume"] == ["--resume"]


def test_compare_has_an_option_for_each_shared_setting():
    assert set(options("compare")) - {"help"} == {*SHARED, "methods", "seeds", "option", "output", "resume", "quiet"}


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"curve", "masking", "transfer", "corruptions"}))
def test_one_spelling_for_one_thing(command):
    taken = {spelling for spellings in options(command).values() for spelling in spellings}
    assert not taken & {"--out", "--n-examples"}
    for one in COMMANDS[command].params:
        assert one.name != "json_" or (one.opts == ["--json"] and one.metavar == FILE)
        assert one.param_type_name == "argument" or one.help, one.name


def test_help_shows_defaults():
    texts = {one.name: one.help for one in COMMANDS["train"].params}
    assert texts["seed"] == "Random seed. [default: 0]"
    assert texts["autoattack_seconds"].endswith("[default: 90]") and texts["channels_last"].endswith("[default: on]")
    assert texts["test_attacks"].endswith("[default: clean pgd-10-1 autoattack]")
    assert texts["epochs"].endswith("[default: the recipe's]") and "default" not in texts["pretrained"]


@pytest.mark.parametrize(
    ("typed", "argument"),
    [
        ({"test_attacks": ["clean,fgsm", "pgd-2"]}, ["clean", "fgsm", "pgd-2"]),
        ({"test_attacks": "clean, fgsm"}, ["clean", "fgsm"]),
        ({"test_attacks": "none"}, []),
        ({"test_attacks": []}, []),
        ({"recipe_args": ["ema=0.9,clip_grad=1"]}, {"ema": 0.9, "clip_grad": 1}),
        ({"recipe_args": {"ema": 0.9}}, {"ema": 0.9}),
        ({"recipe_args": "ema=0.9"}, {"ema": 0.9}),
        ({"pretrained": False}, False),
        ({"eps": "8/255"}, "8/255"),
    ],
    ids=str,
)
def test_values(typed, argument):
    assert arguments_of({**typed, "seed": None}) == dict.fromkeys(typed, argument)


def test_values_of_another_kind():
    for wrong in ({"model": ["a", "b"]}, {"test_attacks": {"clean": 1}}, {"eps": {"a": 1}}):
        with pytest.raises(UserError, match="expected"):
            arguments_of(wrong)
