"""Paired comparison of two records, and which records it refuses."""

from __future__ import annotations

import json

import pytest

from timm_robust.api.paired import paired
from timm_robust.errors import UserError


def test_records_of_other_images_are_not_compared(tmp_path):
    record = {
        "data": "digits", "n_examples": 3, "seed": 0, "threat": {"norm": "Linf", "eps": 0.03, "eps_text": "8/255"},
        "attacks": {"fgsm": {"robust": [1, 0, 1]}},
    }  # fmt: skip
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(record))
    for change, message in (
        ({"data": "photos"}, "the records differ in data: 'digits' in .*, 'photos' in"),
        ({"n_examples": 2}, "differ in n_examples: 3 in .*, 2 in"),
        ({"seed": 1}, "differ in seed"),
        (
            {"threat": {"norm": "Linf", "eps": 0.01, "eps_text": "4/255"}},
            "differ in threat: Linf 8/255 in .*, Linf 4/255",
        ),
        ({"attacks": {"pgd-10-1": {"robust": [1]}}}, "share no attack: fgsm in .*, pgd-10-1 in"),
        ({"attacks": {"fgsm": {"robust": [1]}}}, "fgsm was run on 3 images in .*, on 1 in"),
        ({"attacks": {"fgsm": {}}}, "is no record with a verdict per image"),
        ({"attacks": None}, "is no record with a verdict per image"),
    ):
        b.write_text(json.dumps({**record, **change}))
        with pytest.raises(UserError, match=message):
            paired(a, b)
    b.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        paired(a, b)
    b.write_text(json.dumps(record))
    assert paired(a, b)["fgsm"].p_value == 1
