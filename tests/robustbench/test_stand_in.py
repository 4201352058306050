"""The stand-in for the authors' AutoAttack package."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.support import labelled, network
from timm_robust.errors import UserError
from timm_robust.robustbench.stand_in import AutoAttack, stand_in


def test_the_stand_in_has_the_authors_interface(tmp_path):
    """Names and order of the arguments of fra31/auto-attack."""
    assert list(inspect.signature(AutoAttack).parameters) == [
        "model", "norm", "eps", "seed", "verbose", "attacks_to_run", "version", "is_tf_model", "device", "log_path",
    ]  # fmt: skip
    assert list(inspect.signature(AutoAttack.run_standard_evaluation).parameters) == [
        "self", "x_orig", "y_orig", "bs", "return_labels", "state_path",
    ]  # fmt: skip
    state = stand_in()["autoattack.state"].EvaluationState({"apgd-ce"}, path=tmp_path / "s.json")
    state.robust_flags = torch.tensor([True, False])
    assert type(state).from_disk(tmp_path / "s.json").robust_flags.mean().item() == 0.5, "as benchmark asks it"
    with pytest.raises(UserError, match="cannot go on from"):
        AutoAttack(network()).run_standard_evaluation(*labelled(network(), 16, wrong=2), state_path=tmp_path / "s.json")
