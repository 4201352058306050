"""A small trained network, digits, and shortened attacks for the fast mode's tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timm_robust.evaluation.fast import apgd, fab, square
from timm_robust.evaluation.fast.lanes import Problem
from timm_robust.evaluation.fast.network import Network


@pytest.fixture(scope="session")
def net(few_digits):
    """A small convolutional net, trained on digits until it is right on most; float64, so that sums do not matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        images, targets = few_digits[0]
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(40):
            delta = torch.zeros_like(images).uniform_(-0.05, 0.05)
            loss = nn.functional.cross_entropy(model(images + delta), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.double().eval()


@pytest.fixture(scope="session")
def digits(few_digits):
    images, targets = few_digits[1]
    return images.double(), targets


@pytest.fixture
def problem(net, digits):
    def make(threat, n=24):
        images, targets = digits[0][:n], digits[1][:n]
        with torch.no_grad():
            logits = net(images)
        keep = logits.argmax(1) == targets
        images, targets, logits = images[keep], targets[keep], logits[keep]
        ranks = logits.argsort(1, descending=True)
        return Problem(Network(net, images), images, targets, torch.arange(len(images)), ranks, threat, 0)

    return make


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(apgd, "STEPS", 12)
    monkeypatch.setattr(fab, "STEPS", 5)
    monkeypatch.setattr(square, "QUERIES", 40)


@pytest.fixture
def double(monkeypatch):
    """The reference in float64: it casts images to float32, and makes its buffers in the default precision."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
