"""Transfer of adversarial images from other networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support import labelled, network
from timm_robust.errors import UserError
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.evaluation.transfer import transfer
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 4 / 255, "4/255"), Threat("L2", 0.3, "0.3"), Threat("L1", 2.0, "2")


def test_transfer_from_itself_is_the_attack_itself():
    model = network()
    inputs = EvalInputs(model, *labelled(model, 30), LINF)
    found = transfer(inputs, {"itself": model}, "pgd-10-1", EvalSettings(9, seed=2))
    from timm_robust.evaluation.accuracy import robust_correct_of
    from timm_robust.evaluation.attack_spec import parse_attack

    direct = robust_correct_of(inputs, parse_attack("pgd-10-1"), EvalSettings(9, seed=2))
    assert list(found.still_correct["itself"]) == direct.int().tolist()


def test_other_sources_are_weaker_and_the_worst_is_over_all():
    model, near, far = network(), network(), network(seed=5)
    with torch.no_grad():
        near[-1].weight.add_(0.3 * torch.randn_like(near[-1].weight))
    inputs = EvalInputs(model, *labelled(model, 40), LINF)
    sources = {"near": near, "far": far}
    for attack in ("pgd-10-2", "torchattacks:MIFGSM:steps=10", "fgsm", "cw-linf"):
        found = transfer(inputs, sources, attack)
        assert found.accuracies["near"] < found.accuracies["far"] <= sum(found.clean) / 40
        assert list(found.worst) == [a & b for a, b in zip(*found.still_correct.values(), strict=True)]
        assert not any(found.worst[i] and not found.clean[i] for i in range(40))
    assert found.to_dict()["robust_accuracy_worst"] == pytest.approx(sum(found.worst) / 40)


def test_sources_that_do_not_fit():
    model = network()
    inputs = EvalInputs(model, *labelled(model, 4), LINF)
    with pytest.raises(UserError, match="source 'three' has 3 classes, the target 10"):
        transfer(inputs, {"three": network(3)})
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)).eval()
    with pytest.raises(UserError, match="source 'grey' cannot take images of 3x8x8"):
        transfer(inputs, {"grey": grey})
    with pytest.raises(UserError, match="in train mode"):
        transfer(inputs, {"a": network().train()})
    with pytest.raises(UserError, match="at least one source"):
        transfer(inputs, {})
    for attack in ("apgd-ce", "autoattack", "clean", "torchattacks:FAB"):
        with pytest.raises(UserError, match="stops where the source falls"):
            transfer(inputs, {"a": model}, attack)


def test_image_sizes_of_checkpoints_must_agree(small_model):
    from timm_robust.models.factory import build_model

    other = build_model(
        "resnet18", num_classes=10, image_size=16, model_kwargs={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        data_mean=[0.3] * 3, data_std=[0.37] * 3,
    )  # fmt: skip
    inputs = EvalInputs(small_model.eval(), torch.rand(2, 3, 8, 8), torch.zeros(2).long(), LINF)
    with pytest.raises(UserError, match="source 'big' has image size 16, the target 8"):
        transfer(inputs, {"big": other.eval()})
