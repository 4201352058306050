"""Real CIFAR-10, a small network: FGSM training collapses at 16/255, the watch says so, and others hold at 12/255."""

from __future__ import annotations

import pytest
import timm
import torch

import timm_robust

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

EPOCHS = 12
SMALL = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}


@pytest.fixture(scope="module")
def images(subset):
    return subset(train=10_000, val=500, test=500)


@pytest.fixture
def trained(images, tmp_path):
    def run(method, eps="12/255", network="resnet18"):
        result = timm_robust.train(
            network,
            method,
            images,
            model_kwargs=SMALL if isinstance(network, str) else None,
            output=tmp_path / method,
            eps=eps,
            recipe="default",
            epochs=EPOCHS,
            precision="bf16",
            device="cpu",
            test_attacks=[],
            quiet=True,
        )
        robust = [round(row["val_robust"], 3) for row in result.history]
        print(method, robust, [event["epoch"] for row in result.history for event in row.get("events", [])])
        return result

    return run


def wide_stem():
    """The small network with timm's 7x7 stem at full resolution, in place of its 3x3 centre."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=10, **SMALL)
    network.conv1.stride, network.maxpool = (1, 1), torch.nn.Identity()
    return network


@pytest.mark.parametrize(("eps", "network"), [("16/255", None), ("12/255", wide_stem)], ids=["16", "12-wide-stem"])
def test_fgsm_collapses_and_the_watch_says_so(trained, capfd, eps, network):
    rows = trained("fgsm", eps, network() if network else "resnet18").history
    robust = [row["val_robust"] for row in rows]
    assert robust[-1] < 0.02
    assert rows[-1]["train_accuracy"] > 0.35  # on its own attack
    events = [event["epoch"] for row in rows for event in row.get("events", [])]
    halved = next(epoch for epoch in range(1, EPOCHS) if robust[epoch] < max(robust[:epoch]) / 2) + 1
    assert events and events[0] <= halved + 1
    assert "catastrophic overfitting in epoch" in capfd.readouterr().err


@pytest.mark.parametrize("method", ["n-fgsm", "atas", "gradalign", "seat"])
def test_what_is_made_against_it_holds(trained, method):
    rows = trained(method).history
    assert rows[-1]["val_robust"] > 0.12
    assert not any("events" in row for row in rows)
