"""Counted forward and backward passes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from timm_robust.training.pass_counter import PassCounter


def test_passes_are_counted_forward_and_backward(small_model):
    counter, images = PassCounter(small_model), torch.rand(6, 3, 8, 8)
    logits = small_model(images)
    assert counter.passes == 3
    logits.sum().backward()
    assert counter.passes == 6
    with torch.no_grad():
        small_model(images[:2])
    assert counter.passes == 7
    with counter.paused() as part:
        small_model(images).sum().backward()
    assert (counter.passes, part.passes) == (7, 6)
    inputs = images.clone().requires_grad_(True)
    torch.autograd.grad(small_model(inputs).sum(), inputs)
    assert (counter.passes, counter.images) == (13, 26)
    off = PassCounter(small_model, on=False)
    small_model(images)
    assert off.images == 0


def test_counting_keeps_no_graph_alive(small_model):
    """A hook on the output that holds the output would, and the garbage collector cannot find it."""
    PassCounter(small_model)
    held = []
    for backward in (True, False):
        logits = small_model(torch.rand(4, 3, 8, 8))
        held.append(weakref.ref(logits))
        if backward:
            logits.sum().backward()
        del logits
    gc.collect()
    assert [reference() for reference in held] == [None, None]


@pytest.mark.parametrize(
    ("method", "options", "passes"),
    [
        ("standard", {}, 1.0),
        ("fgsm", {}, 2.0),
        ("fgsm-rs", {}, 2.0),
        ("pgd", {"steps": 3}, 4.0),
        ("trades", {"steps": 3}, 5.5),  # a forward for the attack's target, three steps, two updates
        ("free", {"replays": 3}, 3.0),
        ("multigrad", {"starts": 3}, 4.0),
        ("seat", {}, 4.0),
    ],
)
def test_passes_of_an_epoch(train_small, method, options, passes):
    """Per image of the training split; neither the check nor a look counts."""
    recipe = {"check_attack": "pgd-2-2", "watch_every": 3, "watch_examples": 5}
    result = train_small(method, method_args=options, recipe_args=recipe)
    assert [row["passes"] for row in result.history] == [passes, passes]
    assert all("looks" in row for row in result.history) == (method != "standard")
