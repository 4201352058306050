"""Recipes with the sources of their values, as printed."""

from __future__ import annotations

import json

from timm_robust.cli import listing
from timm_robust.recipes.presets import PRESETS


def test_sources_are_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    listing.recipes("bag-of-tricks", False)
    shown = capsys.readouterr().out
    for part in (
        "Pang et al., Bag of Tricks",
        "--method pgd -o attack_bn=eval --recipe bag-of-tricks",
        "code: all parameters, BatchNorm and biases included",
        "departs from its source: ",
    ):
        assert part in shown
    (line,) = (line for line in shown.splitlines() if " accumulate " in line)
    assert "default" in line
    listing.recipes("trades", True)
    told = json.loads(capsys.readouterr().out)
    assert told["values"]["weight_decay"] == 2e-4 and "code: 2e-4" in told["sources"]["weight_decay"]
    assert told["sources"]["lr"] == PRESETS["trades"].source and told["sources"]["ema"] == "default"
