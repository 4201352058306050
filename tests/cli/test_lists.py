"""Listings of methods, plugins, recipes and models, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from tests.support import run_cli


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
