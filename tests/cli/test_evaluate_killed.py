"""The command itself, killed for good at random moments: the record is that of an uninterrupted run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_killed_twenty_times_the_record_is_the_same(train_small, few_digits, tmp_path):
    checkpoint = train_small(data="digits", epochs=3, recipe_args={"check_attack": "pgd-2-1", "check_examples": 20})
    command = [sys.executable, "-m", "timm_robust", "evaluate", str(checkpoint.output), "--attack", "pgd-5-1",
               "autoattack", "--examples", "48", "--batch-size", "12", "--quiet"]  # fmt: skip
    started = time.monotonic()
    subprocess.run([*command, "--json", str(tmp_path / "whole.json")], check=True)
    whole, again = time.monotonic() - started, tmp_path / "again.json"
    moments, kills, finished = random.Random(0), 0, 0
    while kills < 20:
        with subprocess.Popen([*command, "--json", str(again)]) as process:
            try:
                process.wait(timeout=moments.uniform(0.2, 0.7) * whole)
                finished += 1
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
    subprocess.run([*command, "--json", str(again)], check=True)
    assert finished >= 1, "it must get to the end between kills"
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "again.json"))
    assert 0 < one["attacks"]["autoattack"]["robust_accuracy"] < 1, "the case must tell something"
    assert one["clean_accuracy"] == two["clean_accuracy"]
    for name, entry in one["attacks"].items():
        for what in entry.keys() - {"seconds", "seconds_by_attack"}:
            assert two["attacks"][name][what] == entry[what], what
