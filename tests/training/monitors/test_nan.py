"""Runs whose loss or weights are lost."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support import weights
from timm_robust.errors import RunFailed
from timm_robust.training.monitors.nan import NaNMonitor


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(train_small, monkeypatch, tmp_path):
    from timm_robust_plugins.fgsm_rs.fgsm_rs import FGSMRS

    original = FGSMRS.loss

    def broken(self, batch, perturbed):
        output = original(self, batch, perturbed)
        return {**output, "loss": output["loss"] * float("nan")} if self.epoch_now == 1 else output

    monkeypatch.setattr(FGSMRS, "loss", broken)
    monkeypatch.setattr(FGSMRS, "on_epoch_start", lambda self, epoch: setattr(self, "epoch_now", epoch))
    with pytest.raises(RunFailed, match=r"the loss is nan in epoch 2, batch 1 .*last holds epoch 1"):
        train_small(epochs=3)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values() if value.is_floating_point())
    assert json.loads((tmp_path / "run/last/model.json").read_text())["epoch"] == 1


def test_lost_weights_stop_the_run_though_the_loss_is_finite(train_small, monkeypatch):
    from timm_robust_plugins.fgsm_rs.fgsm_rs import FGSMRS

    def lose(self, epoch):
        with torch.no_grad():
            self.run.unwrapped_model.model.layer4[0].conv1.weight[0, 0, 0, 0] = float("nan")

    monkeypatch.setattr(FGSMRS, "commit", lambda self, batch, perturbed, output: lose(self, 0))
    monkeypatch.setattr(NaNMonitor, "require_finite_loss", lambda self, total, step: None)
    with pytest.raises(RunFailed, match="weight 'model.layer4.0.conv1.weight' is no longer finite after epoch 1"):
        train_small(epochs=1)
