"""Folders of runs: resumed with the same settings, and never overwritten."""

from __future__ import annotations

import pytest

from tests.support import equal, weights
from timm_robust.errors import UserError


def test_resume_refuses_other_settings(train_small):
    train_small(epochs=1)
    with pytest.raises(UserError, match="was started with seed=0, not 5"):
        train_small(epochs=1, seed=5, resume=True)


def test_resume_without_a_run(train_small):
    with pytest.raises(UserError, match="nothing to resume"):
        train_small(resume=True)


def test_folder_of_another_run_is_refused(train_small, tmp_path):
    train_small(epochs=1)
    before = weights(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds another run: continue it with --resume, or .*run-2"):
        train_small(epochs=1)
    assert equal(before, weights(tmp_path / "run"))
