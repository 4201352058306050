"""SWA: the mean of the epochs, with BatchNorm statistics of its own."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch

import timm_robust
from tests.support import equal, weights
from timm_robust.training.engine import Engine


@contextmanager
def every_epoch(kept):
    """Keeps the trained weights after each epoch."""
    original = Engine._train_epoch

    def training(self):
        metrics = original(self)
        kept.append({name: value.clone() for name, value in self.unwrapped_model.model.state_dict().items()})
        return metrics

    Engine._train_epoch = training
    try:
        yield
    finally:
        Engine._train_epoch = original


def test_swa_ships_the_mean_of_the_epochs_with_statistics_of_its_own(train_small, few_digits):
    kept = []
    with every_epoch(kept):
        result = train_small("standard", epochs=4, modifiers={"swa": {"start": 0.25}}, recipe_args={"augment": "none"})
    eval_model = weights(result.output)
    for name in dict(timm_robust.load(result.output / "last").model.named_parameters()):
        mean = np.mean([epoch[name].numpy().astype(np.float64) for epoch in kept[1:]], axis=0)
        np.testing.assert_allclose(eval_model[name].numpy(), mean, rtol=1e-5, atol=1e-6, err_msg=name)
    # the first layer sees the images themselves: its mean over all of them, and not that of the last epoch's weights
    model = timm_robust.load(result.output / "last")
    images = timm_robust.data.load_data(few_digits).train.pixels.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features = model.model.conv1((images - model.mean) / model.std)
    seen = features.mean(dim=(0, 2, 3))
    torch.testing.assert_close(eval_model["bn1.running_mean"], seen, rtol=0.02, atol=0.02)
    assert (eval_model["bn1.running_mean"] - kept[-1]["bn1.running_mean"]).abs().max() > 1e-3


def test_before_its_start_swa_ships_the_trained_weights(train_small):
    plain = train_small("standard", "plain", epochs=1)
    early = train_small("standard", "early", epochs=1, modifiers={"swa": {"start": 1.0}})
    assert equal(weights(plain.output), weights(early.output))
