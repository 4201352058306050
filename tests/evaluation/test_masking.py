"""Signs of masked gradients, on networks that have them and on one that does not."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.masking import after_noise, check_masking, zero_gradients
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 4 / 255, "4/255"), Threat("L2", 0.3, "0.3"), Threat("L1", 2.0, "2")


def failed(checks) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(
    "threat", [Threat("Linf", 0.05, "0.05"), Threat("L2", 0.4, "0.4"), Threat("L1", 2.0, "2")], ids=str
)
def test_an_honest_network_shows_no_sign(trained, threat):
    model, images, targets = trained
    checks = check_masking(EvalInputs(model, images, targets, threat), draws=20)
    assert failed(checks) == set() and len(checks) == 5
    numbers = {name: value for check in checks for name, value in check.numbers.items()}
    assert numbers["pgd-50-1"] < numbers["best of 20 draws"] and 0 < numbers["fgsm"] < 1
    assert all(check.meaning for check in checks) and json.dumps([check.to_dict() for check in checks])


class Rounding(nn.Module):
    """Pixels with so few levels: the gradient is zero almost everywhere."""

    def __init__(self, inner: nn.Module, levels: int = 8):
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, x):
        return self.inner((x * self.levels).round() / self.levels)


def test_a_rounding_layer_is_seen(trained):
    model, images, targets = trained
    checks = check_masking(EvalInputs(Rounding(model).eval(), images, targets, Threat("Linf", 0.3, "0.3")), draws=50)
    assert {"gradients are zero", "random noise beats the gradient", "an unbounded attack fails"} <= failed(checks)
    zero = next(check for check in checks if check.name == "gradients are zero").numbers
    assert min(zero.values()) > 0.8, "of all images that are classified correctly"


def test_saturated_logits_are_seen(trained):
    model, images, targets = trained

    class Hot(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) * 1e4

    checks = check_masking(EvalInputs(Hot().eval(), images, targets, Threat("Linf", 0.05, "0.05")), draws=3)
    assert "gradients are zero" in failed(checks)
    by_loss, by_margin = zero_gradients(EvalInputs(Hot().eval(), images, targets, LINF))
    assert by_loss > 0.5 and by_margin == 0


class AstrayOffGrid(nn.Module):
    """The gradient is right at clean digits, whose levels are 255ths, and turned around everywhere else."""

    class Turn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            on = ((x * 255 - (x * 255).round()).abs() < 1e-3).flatten(1).all(1)
            ctx.save_for_backward(on)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            (on,) = ctx.saved_tensors
            return torch.where(on.view(-1, 1, 1, 1), grad, -grad)

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(self.Turn.apply(x))


def test_misleading_gradients_are_seen(trained):
    model, images, targets = trained
    checks = check_masking(
        EvalInputs(AstrayOffGrid(model).eval(), images, targets, Threat("Linf", 0.05, "0.05")), draws=3
    )
    assert {"one step beats many", "an unbounded attack fails"} <= failed(checks)


def test_steps_that_undo_each_other_are_seen(trained):
    model, images, targets = trained

    class Fickle(AstrayOffGrid):
        """Every second gradient is turned around, as noise of a random defense may do."""

        calls = 0

        def forward(self, x):
            if x.requires_grad:
                Fickle.calls += 1
                x.register_hook(lambda grad, sign=(-1) ** (Fickle.calls - 1): sign * grad)
            return self.inner(x)

    checks = check_masking(EvalInputs(Fickle(model).eval(), images, targets, Threat("Linf", 0.2, "0.2")), draws=3)
    assert "accuracy rises with steps" in failed(checks)


def test_noise_has_full_length_and_stays_inside(trained):
    _, images, targets = trained
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            seen.append(x)
            return nn.functional.one_hot(targets[: len(x)], 10).float()

    images = 0.4 + 0.2 * images[:10]  # far enough from the ends of the range
    for threat, order in ((LINF, math.inf), (L2, 2), (L1, 1)):
        inputs = EvalInputs(Spy().eval(), images, targets[:10], threat)
        seen.clear()
        still_correct = after_noise(inputs, torch.ones(10).bool(), draws=2)
        assert still_correct.all() and len(seen) == 2 and not torch.equal(*seen)
        for x in seen:
            assert torch.allclose(
                (x - images).flatten(1).norm(dim=1, p=order), torch.full((10,), threat.eps), rtol=1e-3
            )
