"""Transfer between checkpoints: classes in another order, and mistakes told in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from timm_robust.api.transfer import transfer
from timm_robust.errors import UserError


def test_sources_of_a_transfer_are_matched_by_name(shared_run, tmp_path):
    """One network under other names: in another order, in none, and as others."""
    metadata, letters = json.loads((shared_run / "best/model.json").read_text()), [*"abcdefghij"]
    names = {"target": letters, "none": [str(n) for n in range(10)], "others": [*letters[:9], "k"]}
    for name, its in {**names, "turned": letters[::-1]}.items():
        shutil.copytree(shared_run / "best", tmp_path / name)
        changed = {**metadata, "data": {**metadata["data"], "class_names": its}}
        (tmp_path / name / "model.json").write_text(json.dumps(changed))
    weights = load_file(tmp_path / "turned/model.safetensors")
    for key in ("fc.weight", "fc.bias"):
        weights[key] = weights[key].flip(0).contiguous()
    save_file(weights, tmp_path / "turned/model.safetensors")
    settings = {"attack": "pgd-5-1", "examples": 40, "quiet": True}
    target = tmp_path / "target"
    for same in ("none", "turned"):
        found = transfer(target, [target, tmp_path / same], "digits", **settings)
        own, other = found.accuracies.values()
        assert own == other < sum(found.clean) / 40
    with pytest.raises(UserError, match="source '.*others' has 'k' where target '.*target' has 'j', and 0 more of 10"):
        transfer(target, [tmp_path / "others"], "digits", **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: transfer(run, ["nowhere"], examples=5), "'nowhere' does not exist"),
    ],
)
def test_mistakes_of_a_user(shared_run, call, message):
    with pytest.raises(UserError, match=message):
        call(shared_run)
