"""What a model must be to be measured, and what is refused or warned of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import timm_robust
from tests.support import Noisy, labelled, network
from timm_robust.errors import UserError
from timm_robust.evaluation.accuracy import right
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.preconditions import output_warnings, require_deterministic, require_finite
from timm_robust.threat import make_threat

THREAT = make_threat(image_size=8)


def test_a_softmax_at_the_end_is_warned_of(few_digits, capfd):
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x).softmax(1)

    timm_robust.evaluate(Softmax().eval(), few_digits, attacks=["fgsm"], examples=20, quiet=True)
    assert "the outputs look like probabilities" in capfd.readouterr().err
    timm_robust.evaluate(network(), few_digits, attacks=["fgsm"], examples=20, quiet=True)
    assert capfd.readouterr().err == ""


def test_random_and_lost_outputs_are_refused(few_digits):
    noisy = Noisy().eval()
    with pytest.raises(UserError, match="the model is not deterministic: two forward passes"):
        timm_robust.evaluate(noisy, few_digits, attacks=["fgsm"], examples=20, quiet=True)
    timm_robust.evaluate(noisy, few_digits, attacks=["fgsm"], examples=20, random_outputs=True, quiet=True)
    lost = network()
    with torch.no_grad():
        lost[0].weight.mul_(float("nan"))
    with pytest.raises(UserError, match="logits are nan for image 0"):
        timm_robust.evaluate(lost, few_digits, attacks=["fgsm"], examples=20, quiet=True)


def test_a_model_in_train_mode_is_refused():
    model = network().train()
    with pytest.raises(UserError, match=r"in train mode: call model.eval\(\)"):
        EvalInputs(model, torch.rand(2, 3, 8, 8), torch.zeros(2).long(), THREAT)


def test_a_part_in_train_mode_is_refused():
    part = nn.Sequential(nn.BatchNorm2d(3), network())
    model = nn.Sequential(part).eval()
    part.train()
    with pytest.raises(UserError, match=r"part '0' of the model is in train mode: call model.eval\(\)"):
        EvalInputs(model, torch.rand(2, 3, 8, 8), torch.zeros(2).long(), THREAT)


def test_weights_that_take_no_float32_are_refused():
    with pytest.raises(UserError, match="weights are float16 and it takes no float32 images: call model.float"):
        EvalInputs(network().half(), torch.rand(2, 3, 8, 8), torch.zeros(2).long(), THREAT)


def test_images_outside_the_range_and_labels_the_model_lacks():
    images, targets = labelled(network(), 6)
    with pytest.raises(UserError, match=r"images range from .* expected pixels in \[0, 1\]"):
        EvalInputs(network(), images * 255, targets, THREAT)
    with pytest.raises(UserError, match="class number 9, the model has only 3 classes"):
        EvalInputs(network(3), images, torch.full((6,), 9), THREAT)


def test_random_outputs_are_refused():
    images, _ = labelled(network(), 12)
    with pytest.raises(UserError, match="the model is not deterministic: .* use autoattack-rand"):
        require_deterministic(Noisy(0.1).eval(), images)
    require_deterministic(network(), images)
    require_deterministic(Noisy(1e-7).eval(), images)  # rounding is not randomness


def test_lost_logits_are_refused_and_never_right():
    model = network()
    images, targets = labelled(model, 12)
    require_finite(model, images)
    images = images.clone()
    images[7] = math.nan
    with pytest.raises(UserError, match="logits are nan for image 7: expected finite numbers"):
        require_finite(model, images, batch_size=5)
    assert not right(model(images), targets)[7]
    assert right(torch.tensor([[1.0, math.inf], [0.0, 1.0]]), torch.tensor([1, 1])).tolist() == [False, True]


def test_probabilities_are_warned_of():
    images, _ = labelled(network(), 12)
    assert output_warnings(network()(images)) == ()
    assert "softmax" in output_warnings(network()(images).softmax(1))[0]
