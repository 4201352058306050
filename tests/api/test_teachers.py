"""Teachers: trained once, kept frozen, used again, and resumed after a kill."""

from __future__ import annotations

import pytest
from timm_robust_plugins.hat.hat import HAT
from timm_robust_plugins.kd_swa.kd_swa import KDSWA

from tests.support import Killed, equal, weights
from timm_robust.training.engine import Engine


@pytest.mark.parametrize(
    ("method", "cls", "made_by"),
    [
        ("hat", HAT, {"helper": "standard"}),
        ("kd-swa", KDSWA, {"natural_teacher": "standard", "robust_teacher": "pgd"}),
    ],
)
def test_teachers_are_trained_kept_frozen_and_used_again(train_small, monkeypatch, method, cls, made_by):
    runs, setup = [], cls.setup

    def watched(self, run):
        runs.append(run)
        setup(self, run)

    monkeypatch.setattr(cls, "setup", watched)
    first = train_small(method)
    assert first.history[-1]["train_loss"] < first.history[0]["train_loss"]
    (run,) = runs
    assert set(run.teachers) == set(made_by)
    for option, made in made_by.items():
        folder = first.output / option
        assert f'"method": "{made}"' in (folder / "best/model.json").read_text()
        teacher = run.teachers[option]
        assert not any(module.training for module in teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert equal(teacher.network.model.state_dict(), weights(folder / "best", "")), "nothing of it has moved"

    given = {option: str(first.output / option) for option in made_by}
    again = train_small(method, output="again", method_args=given)
    assert equal(weights(first.output / "last", ""), weights(again.output / "last", ""))
    assert not any((again.output / option).exists() for option in made_by)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_killed_while_its_teacher_is_trained_goes_on(train_small, monkeypatch, epoch):
    whole = train_small("hat", "whole")
    original = Engine._train_epoch

    def killed(self):
        if self.config.metadata["method"] == "standard" and self.epoch == epoch:
            raise Killed
        return original(self)

    monkeypatch.setattr(Engine, "_train_epoch", killed)
    with pytest.raises(Killed):
        train_small("hat", "killed")
    monkeypatch.setattr(Engine, "_train_epoch", original)
    resumed = train_small("hat", "killed", resume=True)
    assert equal(weights(whole.output / "last", ""), weights(resumed.output / "last", ""))
