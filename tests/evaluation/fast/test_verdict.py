"""Verdicts by the original network in float32, on images inside the threat."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from timm_robust.attacks.steps import project
from timm_robust.evaluation.fast import run_fast
from timm_robust.evaluation.fast.network import Network
from timm_robust.evaluation.fast.verdict import Judge, allowed
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.threat import Threat

LINF, L2 = Threat("Linf", 1 / 32, "1/32"), Threat("L2", 0.25, "0.25")


def test_only_the_original_says_that_an_image_fell(net, digits, short, monkeypatch):
    """A crafting copy that calls every image misclassified breaks none that the original has right."""
    real = Network.__call__
    monkeypatch.setattr(Network, "__call__", lambda self, images, **settings: -real(self, images, **settings))
    harmless = Threat("Linf", 1e-6, "1e-6")
    images, targets = digits[0][:10], digits[1][:10]
    with torch.no_grad():
        clean = net(images).argmax(1) == targets
    assert torch.equal(run_fast(EvalInputs(net, images, targets, harmless)).robust, clean)


NEW_NAMES = """
import torch
from timm_robust.evaluation.fast.verdict import full_float32
torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
with full_float32():
    print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
"""


INHERITED = """
import torch
from timm_robust.evaluation.fast.verdict import full_float32
with full_float32():
    pass
torch.backends.fp32_precision = "tf32"
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
"""


@pytest.fixture
def tf32():
    """Both switches on, as a GPU's user may have set them."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield places
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def test_the_last_word_is_spoken_without_tf32(tf32):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    seen = []
    model.register_forward_hook(lambda *_: seen.append([place.allow_tf32 for place in tf32]))
    Judge(model, torch.rand(2, 3, 2, 2), torch.zeros(2, dtype=torch.long), LINF, 2).logits(torch.rand(2, 3, 2, 2))
    assert seen == [[False, False]] and all(place.allow_tf32 for place in tf32)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has the old names only")
def test_the_last_word_under_the_new_names():
    """In processes of their own: torch does not let old and new names mix."""
    for script, expected in ((NEW_NAMES, "ieee ieee tf32 tf32"), (INHERITED, "tf32 tf32")):
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert told.split() == expected.split()


def test_what_leaves_the_ball_is_projected_first(net, digits):
    images, targets = digits[0][:6], digits[1][:6]
    judge = Judge(net, images, targets, Threat("Linf", 1e-6, "1e-6"), 4)
    with torch.no_grad():
        right = (net(images).argmax(1) == targets).nonzero().squeeze(1)
    assert not judge(right, torch.rand(len(right), 3, 8, 8)).any()
    for threat in (LINF, L2):
        far = project(torch.randn(6, 3, 8, 8, dtype=torch.float64), images, threat)
        assert allowed(far, images, threat).all()
        assert not allowed(images + 0.2, images, threat).any()
        assert not allowed(torch.full_like(images, float("nan")), images, threat).any()
