"""Accuracy under attack, and AutoAttack through the adapter."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import random
import sys

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

import timm_robust
from timm_robust.errors import UserError
from timm_robust.evaluation import autoattack
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.evaluation.autoattack import STANDS, VERSIONS, attacks_for, run_autoattack
from timm_robust.evaluation.evaluate import evaluate_model
from timm_robust.threat import Threat, make_threat

THREAT = make_threat(image_size=8)


def network(classes: int = 10) -> nn.Module:
    """A small network with large gradients, so that attacks break some images and not others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, classes))
    with torch.no_grad():
        model[-1].weight.mul_(8)
    return model.eval()


def labelled(model: nn.Module, n: int = 10):
    """Images that the model mostly gets right."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = model(images).argmax(1)
    targets[0] = (targets[0] + 1) % 2
    return images, targets


def by_hand(model, images, targets, threat, *, batch_size, seed, version="standard", attacks=None, n_targets=9):
    """AutoAttack as its readme says; below ten classes with the attacks and targets that exist."""
    from pyautoattack import AutoAttack

    adversary = AutoAttack(model, norm=threat.norm, eps=threat.eps, version=version, seed=seed, device="cpu")
    adversary.attacks_to_run = attacks or adversary.attacks_to_run
    for part in (adversary.apgd_targeted, adversary.fab):
        part.n_target_classes = min(part.n_target_classes, n_targets)
    with torch.random.fork_rng():
        return adversary.run_standard_evaluation(images, targets, batch_size=batch_size)[1] == targets


@pytest.mark.parametrize(
    ("threat", "batch_size", "version"),
    [
        (Threat("Linf", 2 / 255, "2/255"), 5, "standard"),
        (Threat("L2", 0.1, "0.1"), 12, "standard"),
        (Threat("L1", 1.0, "1"), 12, "standard"),
        (Threat("Linf", 2 / 255, "2/255"), 12, "plus"),
        (Threat("Linf", 2 / 255, "2/255"), 4, "rand"),
    ],
    ids=["Linf", "L2", "L1", "plus", "rand"],
)
def test_verdicts_are_those_of_the_implementation_by_hand(threat, batch_size, version):
    model = network()
    images, targets = labelled(model)
    expected = by_hand(model, images, targets, threat, batch_size=batch_size, seed=3, version=version)
    result = run_autoattack(model, images, targets, threat, batch_size=batch_size, seed=3, version=version)
    assert torch.equal(result.robust, expected)
    assert 0 < result.robust.float().mean() < 1, "the case must tell something"
    assert tuple(result.after) == VERSIONS[version]
    shares = list(result.after.values())
    assert shares == sorted(shares, reverse=True) and shares[-1] == pytest.approx(expected.float().mean().item())
    assert list(result.seconds) == list(result.after)


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 100])
def test_verdicts_are_the_same_attack_by_attack(classes, monkeypatch):
    """The implementation's own state says which images stand after each of its attacks."""
    from pyautoattack.state import EvaluationState

    stood = {}

    def note(state, attack):
        stood[attack] = state.robust_flags.clone()

    monkeypatch.setattr(EvaluationState, "add_run_attack", note)
    model = network(classes)
    images, targets = labelled(model, 8)
    threat = Threat("Linf", 2 / 255, "2/255")
    attacks, n_targets = attacks_for(classes)
    assert ("apgd-t" in attacks) == (classes >= 4) and n_targets == min(9, classes - 1)
    by_hand(model, images, targets, threat, batch_size=4, seed=1, attacks=attacks, n_targets=n_targets)
    result = run_autoattack(model, images, targets, threat, batch_size=4, seed=1)
    assert list(result.after) == list(stood) == attacks
    assert result.fell_to[0] == 0, "misclassified from the start"
    for place, attack in enumerate(attacks, 1):
        assert torch.equal((result.fell_to == STANDS) | (result.fell_to > place), stood[attack]), attack
        assert result.after[attack] == pytest.approx(stood[attack].float().mean().item())


class Killed(Exception):
    pass


class Mortal(nn.Module):
    """A network that dies at a given forward pass, as a process does."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.left = inner, None

    def forward(self, x):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return self.inner(x)


@pytest.fixture
def shorter_attacks(monkeypatch):
    """The same attacks with fewer iterations."""
    build = autoattack._build

    def shorter(*arguments):
        adversary = build(*arguments)
        for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            part.n_iter = 12
        adversary.square.n_queries = 150
        return adversary

    monkeypatch.setattr(autoattack, "_build", shorter)


def test_killed_at_twenty_random_moments_the_verdicts_are_the_same(tmp_path, shorter_attacks):
    model = Mortal(network()).eval()
    images, targets = labelled(model, 12)
    threat = Threat("Linf", 1.5 / 255, "1.5/255")
    settings = {"attacks": ["pgd-5-1", "autoattack"], "batch_size": 5, "seed": 2}
    whole = evaluate_model(model, images, targets, threat, **settings)
    file, moments = tmp_path / "state", random.Random(0)
    kills = 0
    while kills < 20:
        model.left = moments.randrange(1, 900)
        try:
            again = evaluate_model(model, images, targets, threat, keep=file, **settings)
        except Killed:
            kills += 1
        else:
            file.unlink()
        finally:
            model.left = None
    again = evaluate_model(model, images, targets, threat, keep=file, **settings)
    for name, entry in whole.attacks.items():
        for what in entry.keys() - {"seconds", "seconds_by_attack"}:
            assert again.attacks[name][what] == entry[what], what


class Noisy(nn.Module):
    """Its outputs are random."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x) + 0.1 * torch.randn(len(x), 10)


def test_random_models_resume_too(shorter_attacks):
    """AutoAttack *rand* on a model whose outputs are random, stopped after each batch in turn."""
    model = Noisy().eval()
    images, targets = labelled(network(), 8)
    settings = {"version": "rand", "batch_size": 3, "seed": 1}
    stops = []
    threat = Threat("Linf", 1 / 255, "1/255")
    whole = run_autoattack(model, images, targets, threat, keep=lambda at: stops.append(copy.deepcopy(at)), **settings)
    assert len(stops) > 2 and 0 < whole.robust.float().mean() < 1, "the case must tell something"
    for at in stops:
        again = run_autoattack(model, images, targets, threat, progress=at, **settings)
        assert torch.equal(again.fell_to, whole.fell_to)
    with pytest.raises(UserError, match="has 8 images, expected 4: it is of another run"):
        run_autoattack(model, images[:4], targets[:4], THREAT, progress=stops[0], **settings)


def test_other_attacks_do_not_drop_what_is_kept(tmp_path):
    model = network()
    images, targets = labelled(model, 6)
    file = tmp_path / "state"
    evaluate_model(model, images, targets, THREAT, attacks=["fgsm"], keep=file)
    with pytest.raises(UserError, match=r"differs in attacks \(fgsm, now pgd-2-1\)"):
        evaluate_model(model, images, targets, THREAT, attacks=["pgd-2-1"], keep=file)


def test_a_kept_evaluation_of_something_else_is_refused(tmp_path):
    model = network()
    images, targets = labelled(model, 6)
    file = tmp_path / "state"
    evaluate_model(model, images, targets, THREAT, attacks=["fgsm"], keep=file)
    with pytest.raises(UserError, match=r"differs in batch size \(250, now 3\): run the command that began it"):
        evaluate_model(model, images, targets, THREAT, attacks=["fgsm"], keep=file, batch_size=3)
    with torch.no_grad():
        model[0].weight.add_(0.01)
    with pytest.raises(UserError, match="differs in checkpoint"):
        evaluate_model(model, images, targets, THREAT, attacks=["fgsm"], keep=file)
    evaluate_model(model, images, targets, THREAT, attacks=["fgsm"], keep=file, restart=True)
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        evaluate_model(model, images, targets, THREAT, attacks=["fgsm"], keep=file)


class FakeAuthorsPackage:
    """The interface of the authors' package, around the released implementation."""

    def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, version="standard", device="cuda"):
        from pyautoattack import AutoAttack

        self.inner = AutoAttack(model, norm=norm, eps=eps, seed=seed, version=version, device=device)
        self.apgd, self.apgd_targeted, self.fab = self.inner.apgd, self.inner.apgd_targeted, self.inner.fab
        self.square = self.inner.square


def test_the_authors_interface_gives_the_same(monkeypatch):
    """Where the git package `autoattack` is installed its own code runs here; else its interface around the release."""
    try:
        import autoattack  # noqa: F401
    except ImportError:
        import pyautoattack

        fake = type(sys)("autoattack")
        fake.AutoAttack = FakeAuthorsPackage
        monkeypatch.setitem(sys.modules, "autoattack", fake)
        monkeypatch.setitem(sys.modules, "autoattack.checks", pyautoattack.checks)
    model = network()
    images, targets = labelled(model, 10)
    threat = Threat("Linf", 2 / 255, "2/255")
    one = run_autoattack(model, images, targets, threat, package="autoattack", batch_size=5)
    two = run_autoattack(model, images, targets, threat, package="pyautoattack", batch_size=5)
    assert torch.equal(one.robust, two.robust) and one.after == two.after


@pytest.mark.parametrize("file", ["autoattack.py", "autoattack/notes.txt"])
def test_a_script_or_folder_called_autoattack_is_not_taken_for_the_package(file, tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")
    if "autoattack" in sys.modules or importlib.util.find_spec("autoattack"):
        pytest.skip("the authors' package is installed")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert autoattack.implementation() == "pyautoattack"


def test_nothing_is_left_changed(monkeypatch):
    import pyautoattack.checks

    model = network()
    images, targets = labelled(model, 6)
    hook, logger = sys.gettrace(), logging.getLogger("auto-attack")
    monkeypatch.setitem(pyautoattack.checks.funcs, "grad", 7)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_autoattack(model, images, targets, THREAT)
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"
    assert sys.gettrace() is hook and not logger.disabled
    assert pyautoattack.checks.funcs["grad"] == 7
    assert all(p.requires_grad for p in model.parameters())


def test_flags_are_reported_and_do_not_stick():
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x).softmax(1)

    images, targets = labelled(network(), 6)
    flagged = run_autoattack(Softmax().eval(), images, targets, THREAT)
    assert any("softmax" in flag for flag in flagged.flags)
    assert not any("softmax" in flag for flag in run_autoattack(network(), images, targets, THREAT).flags)


def test_a_softmax_at_the_end_is_warned_of(few_digits, capfd):
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x).softmax(1)

    timm_robust.evaluate(Softmax().eval(), few_digits, attacks=["fgsm"], n_examples=20, quiet=True)
    assert "the outputs look like probabilities" in capfd.readouterr().err
    timm_robust.evaluate(network(), few_digits, attacks=["fgsm"], n_examples=20, quiet=True)
    assert capfd.readouterr().err == ""


def test_random_and_lost_outputs_are_refused(few_digits):
    noisy = Noisy().eval()
    with pytest.raises(UserError, match="the model is not deterministic: two forward passes"):
        timm_robust.evaluate(noisy, few_digits, attacks=["fgsm"], n_examples=20, quiet=True)
    timm_robust.evaluate(noisy, few_digits, attacks=["fgsm"], n_examples=20, random_outputs=True, quiet=True)
    lost = network()
    with torch.no_grad():
        lost[0].weight.mul_(float("nan"))
    with pytest.raises(UserError, match="logits are nan for image 0"):
        timm_robust.evaluate(lost, few_digits, attacks=["fgsm"], n_examples=20, quiet=True)


def test_channels_last_images():
    """The DLR loss of the implementations fails on channels_last strides."""
    model = network()
    images, targets = labelled(model, 6)
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(
        run_autoattack(model, last, targets, THREAT).robust, run_autoattack(model, images, targets, THREAT).robust
    )


@pytest.mark.parametrize("attack", ["clean", "fgsm", "pgd-3-2", "autoattack"])
def test_a_model_in_train_mode_is_refused(attack):
    model = network().train()
    with pytest.raises(UserError, match=r"in train mode: call model.eval\(\)"):
        evaluate_model(model, torch.rand(2, 3, 8, 8), torch.zeros(2).long(), THREAT, attacks=[attack])


def test_a_part_in_train_mode_is_refused():
    part = nn.Sequential(nn.BatchNorm2d(3), network())
    model = nn.Sequential(part).eval()
    part.train()
    with pytest.raises(UserError, match=r"part '0' of the model is in train mode: call model.eval\(\)"):
        evaluate_model(model, torch.rand(2, 3, 8, 8), torch.zeros(2).long(), THREAT, attacks=["clean"])


def test_weights_that_take_no_float32_are_refused():
    with pytest.raises(UserError, match="weights are float16 and it takes no float32 images: call model.float"):
        evaluate_model(network().half(), torch.rand(2, 3, 8, 8), torch.zeros(2).long(), THREAT, attacks=["clean"])


def test_attacks_that_draw_from_numpy_follow_the_seed(monkeypatch):
    model = network()
    images, targets = labelled(model, 4)
    drawn = []
    monkeypatch.setattr(torchattacks.Pixle, "forward", lambda self, x, y: drawn.append(np.random.rand()) or x)
    before = np.random.get_state()[1].copy()
    for seed in (3, 3, 4):
        evaluate_model(model, images, targets, THREAT, attacks=["torchattacks:Pixle"], seed=seed)
    assert drawn[0] == drawn[1] != drawn[2]
    assert (np.random.get_state()[1] == before).all()


def test_pgd_is_deterministic_and_restarts_only_lower(capsys):
    model = network()
    images, targets = labelled(model)
    threat = Threat("Linf", 2 / 255, "2/255")
    one, again, more = (
        evaluate_model(model, images, targets, threat, attacks=[name], seed=1).attacks[name]
        for name in ("pgd-3-1", "pgd-3-1", "pgd-3-4")
    )
    assert one["robust"] == again["robust"]
    assert more["robust_accuracy"] <= one["robust_accuracy"] < 1


def test_pgd_against_an_independent_loop():
    """One step from the clean image with eps/4, by hand, on a linear network where the gradient is known."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    images, targets = torch.rand(40, 3, 8, 8), torch.zeros(40).long()
    weight = linear[1].weight.detach().double()
    direction = (weight[1] - weight[0]).sign().view(3, 8, 8)
    eps = 4 / 255
    worst = (images.double() + eps * direction).clamp(0, 1)
    margin = worst.flatten(1) @ (weight[0] - weight[1]) + (linear[1].bias[0] - linear[1].bias[1]).double()
    threat = Threat("Linf", eps, "4/255")
    result = evaluate_model(linear, images, targets, threat, attacks=["pgd-20-1", "fgsm"])
    assert result.attacks["pgd-20-1"]["robust"] == (margin > 0).int().tolist()
    assert result.attacks["fgsm"]["robust"] == (margin > 0).int().tolist()


def test_json_of_the_design(train_small, tmp_path, few_digits):
    output = train_small(epochs=1).output
    file = tmp_path / "record.json"
    timm_robust.evaluate(
        output, few_digits, attacks=["fgsm", "pgd-2-1", "autoattack"], n_examples=12, json=file, quiet=True
    )
    record = json.loads(file.read_text())
    assert set(record) >= {
        "checkpoint",
        "data",
        "n_examples",
        "threat",
        "clean_accuracy",
        "seed",
        "versions",
        "hardware",
        "attacks",
    }
    assert record["threat"] == {"norm": "Linf", "eps": pytest.approx(8 / 255), "eps_text": "8/255"}
    assert record["n_examples"] == 12 and 0 <= record["clean_accuracy"] <= 1
    assert list(record["attacks"]) == ["fgsm", "pgd-2-1", "autoattack"]
    for entry in record["attacks"].values():
        assert len(entry["robust"]) == 12 and entry["robust_accuracy"] == pytest.approx(sum(entry["robust"]) / 12)
    assert record["attacks"]["autoattack"]["implementation"].startswith(("pyautoattack", "autoattack"))
    assert record["attacks"]["autoattack"]["flags"] == []


def test_a_full_disk_does_not_lose_what_was_measured(train_small, few_digits, tmp_path, monkeypatch, capfd):
    output = train_small(epochs=1).output

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("timm_robust.utils.files.write_json", full)
    result = timm_robust.evaluate(output, few_digits, attacks=["fgsm"], json=tmp_path / "record.json", quiet=True)
    assert len(result.attacks["fgsm"]["robust"]) == 100
    assert "could not be written" in capfd.readouterr().err
    assert list(tmp_path.glob("record.*")) == [tmp_path / "record.unfinished"], "what is kept goes only with a record"


def test_evaluation_leaves_plugins_alone(train_small, tmp_path):
    """A checkpoint is measured in a process that may load no plugin at all."""
    import os
    import subprocess

    output = train_small("sat", epochs=1).output
    code = (
        f"import timm_robust, torch, sys; m = timm_robust.load({str(output)!r}); m(torch.rand(2, 3, 8, 8));"
        "assert not [name for name in sys.modules if name.startswith('timm_robust_plugins')]"
    )
    environment = {**os.environ, "TIMM_ROBUST_LOAD_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"attacks": ["pgdd"]}, "unknown attack 'pgdd': expected clean, fgsm, autoattack or pgd-STEPS-RESTARTS"),
        ({"attacks": ["clean"], "n_examples": 101}, "n_examples is 101, the test split of .* has only 100"),
        ({"eps": "8"}, "did you mean 8/255"),
        ({"n_examples": 0}, "n_examples is 0: expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ({"attacks": ["autoattack-rand"], "fast": True}, "the fast mode has no version rand"),
        ({"json": "nowhere/record.json"}, "the folder of the record 'nowhere/record.json' does not exist"),
    ],
)
def test_mistakes(train_small, few_digits, call, message):
    output = train_small(epochs=1).output
    with pytest.raises(UserError, match=message):
        timm_robust.evaluate(output, few_digits, quiet=True, **call)


def test_images_outside_the_range_and_labels_the_model_lacks():
    images, targets = labelled(network(), 6)
    with pytest.raises(UserError, match=r"images range from .* expected pixels in \[0, 1\]"):
        evaluate_model(network(), images * 255, targets, THREAT, attacks=[])
    with pytest.raises(UserError, match="class number 9, the model has only 3 classes"):
        evaluate_model(network(3), images, torch.full((6,), 9), THREAT, attacks=[])


def test_names():
    assert parse_attack("pgd").name == "pgd-50-10"
    assert (parse_attack("PGD-20").steps, parse_attack("pgd-20").restarts) == (20, 1)
    for wrong in ("pgd-0-1", "pgd-a", "", "auto"):
        with pytest.raises(UserError):
            parse_attack(wrong)
