"""Listings of methods, plugins, recipes and models, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import timm_robust
from tests.plugin.conftest import plugin_of
from tests.support import run_cli
from timm_robust.cli import lists
from timm_robust.plugin import RecipeSpec, get_manager
from timm_robust.recipes.presets import find_recipe


@pytest.mark.parametrize(
    "command",
    [
        ["methods"],
        ["methods", "sat"],
        ["distillers"],
        ["distillers", "rded"],
        ["plugins"],
        ["recipes"],
        ["recipes", "rice"],
        ["models"],
        ["models", "resnet18"],
    ],
    ids=" ".join,
)
def test_listings_and_their_json(command):
    plain, machine = run_cli(*command), run_cli(*command, "--json")
    assert plain.returncode == 0 and plain.stdout.strip(), plain.stderr
    assert machine.returncode == 0 and json.loads(machine.stdout), machine.stderr


def test_methods_json_has_the_promised_keys():
    rows = json.loads(run_cli("methods", "--json").stdout)
    assert {"fgsm-rs", "pgd", "sat", "standard", "trades"} <= {row["name"] for row in rows}
    for row in rows:
        assert set(row) == {"name", "kind", "summary", "reference", "distribution", "version", "status", "error"}


def test_sources_are_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    lists.recipes("bag-of-tricks")
    shown = capsys.readouterr().out
    for part in (
        "Pang et al., Bag of Tricks",
        "--method pgd -o attack_bn=eval --recipe bag-of-tricks",
        "code: all parameters, BatchNorm and biases included",
        "departs from its source: ",
        f"from timm-robust {timm_robust.__version__}",
    ):
        assert part in shown
    (line,) = (line for line in shown.splitlines() if " accumulate " in line)
    assert "default" in line
    lists.recipes("trades", Path("-"))
    told = json.loads(capsys.readouterr().out)
    assert told["values"]["weight_decay"] == 2e-4 and "code: 2e-4" in told["sources"]["weight_decay"]
    assert told["sources"]["lr"] == find_recipe("trades").spec.source and told["sources"]["ema"] == "default"


def test_a_bad_recipe_of_a_third_party_hides_no_other(capsys, monkeypatch):
    """Listed with its error and its distribution; refused when it is asked for."""
    monkeypatch.setenv("COLUMNS", "400")
    manager, source = get_manager(), "our choice"
    specs = [
        RecipeSpec(name=name, summary="foo", source=source, api_version=1, values=values)
        for name, values in (("foo-good", {"epochs": 2}), ("foo-bad", {"epochs": 0}))
    ]
    plugin = plugin_of(*specs, hook="timm_robust_recipes")
    manager.register(plugin, name="foo", distribution="timm-robust-foo", version="0.2")
    failures = list(manager.failures)
    try:
        lists.recipes(None, Path("-"))
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        lists.recipes(None)
        shown = capsys.readouterr().out
    finally:
        manager.unregister("foo")
        manager.failures = failures
    assert (rows["foo-good"]["distribution"], rows["foo-good"]["status"]) == ("timm-robust-foo", "active")
    assert (rows["foo-bad"]["status"], rows["rice"]["status"]) == ("failed", "active")
    complaint = (
        "recipe 'foo-bad' comes from timm-robust-foo 0.2, which failed at check: "
        "recipe 'foo-bad' sets a bad value: recipe setting 'epochs' is 0: expected at least 1"
    )
    assert rows["foo-bad"]["error"].startswith(complaint) and complaint in shown
