"""Precisions and trackers."""

from __future__ import annotations

import pytest

from tests.support import equal, weights
from timm_robust.errors import UserError


def test_two_precisions_in_one_process(train_small):
    """accelerate keeps its precision for the whole process and refuses a second one."""
    first = train_small(output="a", epochs=1, image_size=16)
    second = train_small(output="b", epochs=1, image_size=16, precision="bf16")
    third = train_small(output="c", epochs=1, image_size=16)
    assert equal(weights(first.output), weights(third.output))
    assert not equal(weights(first.output), weights(second.output))


def test_tensorboard_on_request(train_small):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train_small(epochs=2, track=["tensorboard"])
    (events,) = result.output.rglob("events.out.tfevents.*.0")
    found = EventAccumulator(str(events.parent)).Reload()
    logged = [round(event.value, 5) for event in found.Scalars("val_clean")]
    assert logged == [round(row["val_clean"], 5) for row in result.history]


def test_a_missing_extra_names_it(train_small, monkeypatch):
    monkeypatch.setattr("timm_robust.training.accelerator.get_available_trackers", list)
    with pytest.raises(
        UserError, match=r"needs tensorboard, which is not installed: pip install 'timm-robust\[tensorboard\]'"
    ):
        train_small(track=["tensorboard"])


def test_fp16_needs_a_gpu(train_small):
    with pytest.raises(UserError, match="'fp16' needs a GPU: use bf16 or fp32"):
        train_small(precision="fp16", device="cpu")
