"""What differs on a GPU: precisions, compilation, where data lives, and the attacks' gradients under fp16."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import timm_robust
from tests.support import SMALL
from timm_robust.attacks.attacker import Attacker
from timm_robust.data import load_data, make_eval_loader, make_train_loader
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.evaluation.evaluate import evaluate_model
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.models.factory import build_model
from timm_robust.threat import Threat, make_threat
from timm_robust.training.accelerator import FP16_GRADIENT_SCALE
from timm_robust.training.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def convolutions():
    """(device type, output's dtype) of every convolution that runs during the test."""
    seen = set()

    def note(module, inputs, output):
        if isinstance(module, nn.Conv2d) and not output.is_meta:
            seen.add((output.device.type, output.dtype))

    handle = nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


@pytest.mark.parametrize("precision", list(DTYPES))
@pytest.mark.parametrize("method", ["fgsm-rs", "pgd", "trades", "sat"])
def test_trains_in_every_precision(train_small, convolutions, precision, method):
    result = train_small(method, epochs=1, precision=precision)
    (row,) = result.history
    assert math.isfinite(row["train_loss"]) and row["train_loss"] < 5
    assert 0 <= row["val_robust"] <= row["val_clean"] <= 1
    assert ("cuda", DTYPES[precision]) in convolutions
    assert not [device for device, _ in convolutions if device != "cuda"]
    weights = result.model.state_dict().values()
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights if w.is_floating_point())


@pytest.mark.parametrize("precision", list(DTYPES))
def test_learns_in_every_precision(train_small, precision):
    """Ten classes, so 0.1 is chance: what is trained is what is measured and stored."""
    result = train_small(
        "fgsm-rs", data="digits", model_kwargs=None, epochs=3, precision=precision, test_attacks=["clean", "pgd-10-1"]
    )
    assert result.history[-1]["val_robust"] > 0.3
    assert result.evaluation.attacks["pgd-10-1"]["robust_accuracy"] > 0.3


@pytest.mark.parametrize("precision", list(DTYPES))
@pytest.mark.parametrize("method", ["pgd", "sglr", "te", "mart", "lbgat"])
def test_composes_in_every_precision(train_small, precision, method):
    result = train_small(
        method,
        precision=precision,
        modifiers={"awp": {"start": 0.0}, "swa": {"start": 0.0}},
        activation="silu",
        recipe_args={"augment": "idbh-weak", "label_smoothing": 0.1, "diagnose": 50, "check_attack": "pgd-1-1"},
    )
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
    weights = result.model.state_dict().values()
    assert all(w.isfinite().all() for w in weights if w.is_floating_point())


@pytest.mark.parametrize("method", ["pgd", "te"])
def test_weight_perturbation_is_compiled_too(train_small, method):
    result = train_small(method, compile=True, modifiers={"awp": {"start": 0.0}}, recipe_args={"ema": 0.9})
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


def test_resumes(train_small, monkeypatch):
    """The scaler of fp16, the averaged weights and the optimizer's state come back to the device."""
    settings = {"epochs": 2, "precision": "fp16", "recipe_args": {"ema": 0.9, "check_attack": "pgd-1-1"}}
    whole = train_small(output="whole", **settings)

    def killed(engine):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        original = Engine._train_epoch
        patch.setattr(Engine, "_train_epoch", lambda self: killed(self) if self.epoch else original(self))
        with pytest.raises(KeyboardInterrupt):
            train_small(output="killed", **settings)
    resumed = train_small(output="killed", resume=True, **settings)
    losses = [[row["train_loss"] for row in run.history] for run in (whole, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_two_devices_in_one_process(train_small, convolutions):
    """accelerate keeps its device for the whole process."""
    train_small(output="gpu", epochs=1, precision="bf16")
    convolutions.clear()
    train_small(output="cpu", epochs=1, device="cpu")
    assert convolutions == {("cpu", torch.float32)}
    convolutions.clear()
    train_small(output="back", epochs=1)
    assert convolutions == {("cuda", torch.float32)}


@pytest.mark.parametrize("method", ["fgsm-rs", "sat"])
def test_compiled_training_is_the_same_training(train_small, method):
    """Both crafting policies of BatchNorm: fgsm-rs attacks in train mode, sat in eval mode."""
    losses = [
        train_small(method, output=f"{compiled}", epochs=1, compile=compiled).history[0]["train_loss"]
        for compiled in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # fused kernels round differently, and signs flip


def test_compiled_weights_load_uncompiled(train_small, few_digits):
    output = train_small(epochs=1, compile=True, precision="bf16").output
    assert timm_robust.load(output)(few_digits[1][0]).isfinite().all()


def test_a_checkpoint_gives_the_same_logits_on_both_devices(train_small, few_digits):
    output = train_small("sat", epochs=1).output
    images = few_digits[1][0].cpu()
    here, there = timm_robust.load(output, device="cpu"), timm_robust.load(output, device="cuda")
    assert next(there.parameters()).is_cuda
    with torch.no_grad():
        cpu, cuda = here(images), there(images.cuda()).cpu()
        exact, again = here.double()(images.double()), there.double()(images.double().cuda()).cpu()
    assert torch.allclose(exact, again, atol=1e-9)
    # in single precision convolutions may run in TF32, which keeps ten bits
    assert torch.allclose(cpu, cuda, atol=1e-2 * cpu.abs().max().item())


def test_evaluation_agrees_with_the_cpu(train_small, few_digits):
    output = train_small("fgsm-rs", epochs=2).output
    one, two = (
        timm_robust.evaluate(output, few_digits, attacks=["fgsm", "pgd-10-1"], device=device, quiet=True)
        for device in ("cpu", "cuda")
    )
    assert two.clean_accuracy == pytest.approx(one.clean_accuracy, abs=0.02)
    for name in ("fgsm", "pgd-10-1"):
        accuracies = [record.attacks[name]["robust_accuracy"] for record in (one, two)]
        assert accuracies[1] == pytest.approx(accuracies[0], abs=0.05)


def test_resident_loader_gives_the_same_batches():
    """Draws are made on the CPU, so only the division by 255 may round differently."""
    splits = {device: load_data("digits", device=device) for device in ("cpu", "cuda")}
    settings = {"batch_size": 128, "augment": "crop-flip", "seed": 3}
    for epoch in (0, 5):
        both = [make_train_loader(b.train, device=d, **settings).epoch(epoch) for d, b in splits.items()]
        for cpu, cuda in zip(*both, strict=True):
            assert cuda.images.is_cuda and cuda.targets.is_cuda and cuda.index.is_cuda
            assert torch.equal(cpu.index, cuda.index.cpu()) and torch.equal(cpu.targets, cuda.targets.cpu())
            assert torch.equal(cpu.view.top, cuda.view.top.cpu()) and torch.equal(cpu.view.flip, cuda.view.flip.cpu())
            assert torch.allclose(cpu.images, cuda.images.cpu(), atol=1e-6)
            assert cuda.images.min() >= 0 and cuda.images.max() <= 1
    both = [make_eval_loader(b.test, batch_size=100, device=d) for d, b in splits.items()]
    for cpu, cuda in zip(*both, strict=True):
        assert torch.allclose(cpu.images, cuda.images.cpu(), atol=1e-6)


def test_autoattack():
    """Verdicts of the implementation called by hand on the device; the device's generator is left as it was."""
    from pyautoattack import AutoAttack

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, 10))
    with torch.no_grad():
        model[-1].weight.mul_(8)
    model = model.cuda().eval()
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        targets = model(images).argmax(1)
    targets[0] = (targets[0] + 1) % 10
    threat = Threat("Linf", 2 / 255, "2/255")
    adversary = AutoAttack(model, norm="Linf", eps=threat.eps, version="standard", seed=3, device="cuda")
    by_hand = (adversary.run_standard_evaluation(images, targets, batch_size=5)[1] == targets).cpu()
    state = torch.cuda.get_rng_state()
    result = run_autoattack(EvalInputs(model, images, targets, threat), settings=EvalSettings(5, seed=3))
    assert torch.equal(result.robust.cpu(), by_hand)
    assert not result.robust[0] and result.flags == []
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_evaluation_keeps_the_generators(small_model, few_digits):
    images, targets = (part.cuda() for part in few_digits[1])
    model = small_model.cuda().eval()
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    evaluate_model(EvalInputs(model, images, targets, make_threat(image_size=8)), ["fgsm", "pgd-2-2"])
    assert torch.equal(torch.cuda.get_rng_state(), before[0]) and torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("attack", ["fgsm", "ffgsm", "pgd", "apgd"])
@pytest.mark.parametrize("precision", list(DTYPES))
@pytest.mark.parametrize("threat", [make_threat(image_size=8), make_threat("L2", 0.5, image_size=8)], ids=str)
def test_attacks_keep_the_threat(small_model, few_digits, attack, precision, threat):
    images, targets = (part.cuda() for part in few_digits[1])
    attacker = Attacker(small_model.cuda().train(), threat, **half(precision))
    for layout in (torch.contiguous_format, torch.channels_last):
        found = attacker(images.to(memory_format=layout), targets, attack)
        delta = found - images
        size = delta.abs().max() if threat.norm == "Linf" else delta.flatten(1).norm(dim=1).max()
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert 0 < size <= threat.eps + 1e-6
        assert found.min() >= 0 and found.max() <= 1


def half(precision: str) -> dict:
    """How the engine sets its attacker up."""
    if precision == "fp32":
        return {}
    scale = FP16_GRADIENT_SCALE if precision == "fp16" else 1.0
    return {"autocast": partial(torch.autocast, "cuda", dtype=DTYPES[precision]), "gradient_scale": scale}


def test_gradients_do_not_underflow_under_fp16():
    """Small logits and a batch mean: without the scale most gradients are zero in fp16, and their signs too."""
    torch.manual_seed(0)
    model = build_model(
        "resnet18",
        num_classes=10,
        image_size=8,
        # timm's residual branches start at zero, and then some pixels reach no logit
        model_kwargs={**SMALL, "zero_init_last": False},
        data_mean=[0.3] * 3,
        data_std=[0.37] * 3,
    )
    with torch.no_grad():
        model.model.fc.weight.mul_(1e-3)
    model = model.cuda().eval()
    images, targets = torch.rand(256, 3, 8, 8).mul(0.6).add(0.2).cuda(), (torch.arange(256) % 10).cuda()
    threat = make_threat(image_size=8)

    def moved(**settings) -> float:
        found = Attacker(model, threat, **settings)(images, targets, "fgsm")
        return ((found - images).abs() > threat.eps / 2).float().mean().item()

    assert moved() > 0.99
    assert moved(**half("bf16")) > 0.9
    assert moved(**half("fp16")) > 0.9
    assert moved(**{**half("fp16"), "gradient_scale": 1.0}) < 0.9, "the case must tell something"
