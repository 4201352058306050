"""`TrainSettings`, the one list of arguments: signatures, docstrings, manifests and the command line agree with it."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields

import pytest

import timm_robust
from timm_robust import UserError
from timm_robust.api.settings import DEFAULTS, FREE_IN_A_COMPARISON, FREE_IN_A_RUN, SETTINGS, SHARED, TrainSettings

OBJECTS = ("callbacks",)
"""Arguments of `train` that are no settings: objects of one call, which no file can hold."""


def documented(function) -> dict[str, str]:
    """The texts of a docstring's Args."""
    block = inspect.getdoc(function).partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^    (?=\w+: )", block, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, _, text in (entry.partition(": ") for entry in entries)}


def test_the_signature_of_train_is_the_settings():
    parameters = inspect.signature(timm_robust.train).parameters
    assert list(parameters) == [*(field.name for field in fields(TrainSettings)), *OBJECTS]
    for field in fields(TrainSettings):
        assert parameters[field.name].default == field.default, field.name
        assert parameters[field.name].annotation == field.type, field.name


def test_the_docstring_of_train_begins_as_the_help():
    texts = documented(timm_robust.train)
    assert list(texts) == [*SETTINGS, *OBJECTS]
    for name, one in SETTINGS.items():
        assert texts[name].startswith(one.help), name
        assert not one.unset or f"default: {one.unset}" in texts[name], name
        assert one.help[0].islower() and not one.help.endswith("."), name


def test_train_passes_all_arguments_on(monkeypatch):
    """Each with another value than the default, which must arrive under its name."""
    seen = []
    monkeypatch.setattr("timm_robust.api.train._train", lambda *arguments: seen.append(arguments))
    given, callbacks = {name: object() for name in SETTINGS}, [object()]
    timm_robust.train(**given, callbacks=callbacks)
    assert seen == [(TrainSettings(**given), callbacks)]


def test_compare_takes_and_documents_what_runs_share():
    own = [
        name
        for name, one in inspect.signature(timm_robust.compare).parameters.items()
        if one.kind is not one.VAR_KEYWORD
    ]
    rest = [name for name in SHARED if name not in own]
    listed = documented(timm_robust.compare)["settings"].partition(": ")[2].rstrip(".").split(", ")
    assert listed == rest
    assert not {"seed", "method", "modifiers", "activation", "output", "resume"} & set(SHARED)


def test_options_of_the_command_line_are_distinct():
    options = [one.option for one in SETTINGS.values()]
    assert len({*options}) == len(options) and all(re.fullmatch("[a-z][a-z-]+", option) for option in options)


def test_what_may_differ_when_resumed():
    measures = {"test_attacks", "test_examples", "autoattack_seconds"}
    assert measures | {"device", "compile", "track", "data_dir", "download", "workers"} == FREE_IN_A_RUN
    assert {"test_examples"} == FREE_IN_A_RUN - FREE_IN_A_COMPARISON
    assert SETTINGS.keys() - DEFAULTS.keys() == {"output", "resume", "quiet"}


def test_a_manifest_without_a_setting_means_its_default(train_small, tmp_path):
    train_small(epochs=1)
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["asked"].keys() == DEFAULTS.keys()
    for name in ("channels_last", "stem", "workers"):
        del manifest["asked"][name]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was started with channels_last=True, not False"):
        train_small(epochs=1, channels_last=False, resume=True)
    assert len(train_small(epochs=1, resume=True, workers=0).history) == 1
