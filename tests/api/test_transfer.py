"""Transfer between checkpoints: classes that differ, and mistakes told in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest

from timm_robust.api.transfer import transfer
from timm_robust.errors import UserError


def test_checkpoints_of_other_classes_are_refused(shared_run, tmp_path):
    metadata = json.loads((shared_run / "best/model.json").read_text())
    shutil.copytree(shared_run / "best", tmp_path / "classes")
    changed = {**metadata, "data": {**metadata["data"], "class_names": [*"abcdefghij"]}}
    (tmp_path / "classes/model.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="source '.*classes' has class 'a' where the target has '0'"):
        transfer(shared_run, [tmp_path / "classes"], examples=5, quiet=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: transfer(run, ["nowhere"], examples=5), "'nowhere' does not exist"),
    ],
)
def test_mistakes_of_a_user(shared_run, call, message):
    with pytest.raises(UserError, match=message):
        call(shared_run)
