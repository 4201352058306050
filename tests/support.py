"""Helpers of several test files: small networks and images, formulas in float64 NumPy, files of a run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import timm_robust
from timm_robust.attacks.attacker import Attacker
from timm_robust.data import Batch
from timm_robust.defense import Perturbed
from timm_robust.plugin.manager import PluginManager
from timm_robust.recipes.recipe import Recipe
from timm_robust.runs.finished import FinishedRun
from timm_robust.testing import Bench
from timm_robust.training.optim import Schedule

SCRIPTS = Path(__file__).resolve().parents[1] / "examples/cifar10"

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
"""A small ResNet, as `model_kwargs` of resnet18."""

EPS = 8 / 255

TARGETS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
"""Labels of the rows of `some_logits` and `fixed_logits`."""


class Killed(BaseException):
    """Not an Exception, like the end of a process."""


# runs


def weights(run, name: str = "last") -> dict[str, torch.Tensor]:
    """Those of one checkpoint of a run, which is given by its result or by its folder."""
    return load_file(Path(getattr(run, "output", run)) / name / "model.safetensors")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def timeless(rows: list[dict]) -> list[dict]:
    """Rows of a history without what depends on the machine."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def epoch_rows(*robust, clean=0.9):
    """Rows of a history with these robust accuracies on validation images."""
    return [
        {"epoch": i, "val_clean": clean, "val_robust": value, "best": value == max(robust[:i])}
        for i, value in enumerate(robust, 1)
    ]


def finished_run(method, seed, robust, collapse=None, answer="warn", robust_correct=(1, 0), tmp="."):
    """A run that ended, with these robust accuracies on validation images."""
    history = [
        {"epoch": i, "val_robust": value, "seconds": 1.0, "passes": 2.0, "best": i == 1}
        for i, value in enumerate(robust, 1)
    ]
    if collapse:
        history[-1]["events"] = [{"epoch": collapse, "answer": answer}]
    run = FinishedRun(method, seed, tmp, done=True, history=history)
    run.evaluation = {
        "n_examples": 4,
        "clean_accuracy": 0.5,
        "attacks": {"autoattack": {"n_examples": len(robust_correct), "robust": list(robust_correct)}},
    }
    run.manifest = {
        "model": {"architecture": "resnet18"},
        "data": {"name": "digits"},
        "threat": {"norm": "Linf", "eps_text": "8/255"},
        "recipe": {"epochs": 3, "check_attack": "pgd-10-1"},
        "method_args": {},
    }
    return run


def run_cli(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "timm_robust", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=300, env={**os.environ, "COLUMNS": "120", **environment},
    )  # fmt: skip


# plugins


def discover() -> PluginManager:
    """A manager that has met the installed plugins."""
    manager = PluginManager()
    manager.discover()
    return manager


# formulas


def some_logits(seed: int) -> np.ndarray:
    """8 x 10 logits of a usual size."""
    return 3 * np.random.default_rng(seed).standard_normal((8, 10))


def fixed_logits(seed: int) -> np.ndarray:
    """8 x 10 logits of a usual size, with one image that is nearly certain."""
    logits = some_logits(seed)
    logits[0, 3] = 30.0
    return logits


def fixed_logits_one_wrong(seed: int) -> np.ndarray:
    """8 x 10 logits of a usual size, with one image that is nearly certain of its label and one that is of another."""
    logits = some_logits(seed)
    logits[0, 3] = logits[1, 7] = 20.0
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropies(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each image; targets are classes or soft labels."""
    labels = np.eye(logits.shape[1])[targets] if targets.ndim == 1 else targets
    return -(labels * log_softmax(logits)).sum(axis=1)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """The mean over images; targets are classes or soft labels."""
    return float(cross_entropies(logits, targets).mean())


def divergences(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """KL(p(x) || p(x')) of each image."""
    p, q = softmax(clean), softmax(adversarial)
    return (p * np.log(p / q)).sum(axis=1)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def leaves(*arrays: np.ndarray) -> list[torch.Tensor]:
    """Tensors of which those of floats want a gradient."""
    return [
        torch.from_numpy(array).requires_grad_() if array.dtype == float else torch.tensor(array) for array in arrays
    ]


def differences(function, arrays: list[np.ndarray], number: int, places) -> list[float]:
    """Central differences of a float64 function in some entries of its argument `number`."""
    found = []
    for place in places:
        ends = []
        for shift in (1e-5, -1e-5):
            moved = [array.copy() for array in arrays]
            moved[number][place] += shift
            ends.append(function(*moved))
        found.append((ends[0] - ends[1]) / 2e-5)
    return found


PLACES = [(1, 2), (2, 4), (4, 5), (5, 9), (6, 0), (7, 7)]
"""Labels of their image, and others."""


def assert_gradients_are_those_of(expected, found, *arrays: np.ndarray) -> None:
    """Autograd of the tensor function `found` against differences of the NumPy function `expected`."""
    given = leaves(*arrays)
    found(*given).backward()
    for number, tensor in enumerate(given):
        slopes = differences(expected, list(arrays), number, PLACES)
        assert [tensor.grad[place].item() for place in PLACES] == pytest.approx(slopes, rel=1e-5, abs=1e-7)


# learning rates


STEPS_PER_EPOCH = 8
"""Optimizer steps of an epoch."""


def learning_rates(recipe: Recipe, steps: int = STEPS_PER_EPOCH) -> np.ndarray:
    """The learning rate of each step, [epochs, steps]."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr, momentum=0.9)
    schedule, found = Schedule(optimizer, recipe, steps), []
    for _ in range(recipe.epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(found).reshape(recipe.epochs, steps)


# images


def same_batches(one: list[Batch], other: list[Batch]) -> bool:
    """Equal images, labels and indices, batch by batch."""
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.index, b.index) and torch.equal(a.targets, b.targets)
        for a, b in zip(one, other, strict=True)
    )


def corrupted(images: torch.Tensor, severity: int, seed: int) -> np.ndarray:
    """uint8 [N, H, W, 3] with noise that grows with the severity."""
    draw = np.random.default_rng(seed)
    pixels = images.permute(0, 2, 3, 1).numpy() * 255
    return (pixels + draw.normal(0, 12 * severity, pixels.shape)).clip(0, 255).round().astype(np.uint8)


def lengths(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """The length of each image's change in the norm."""
    flat = delta.double().flatten(1)
    return flat.norm(dim=1, p={"Linf": math.inf, "L2": 2, "L1": 1}[norm])


def into_ball(images: torch.Tensor, clean: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    return torch.minimum(torch.maximum(images, clean - eps), clean + eps).clamp(0, 1)


def inside(adversarial: torch.Tensor, images: torch.Tensor) -> bool:
    """In the ball of radius EPS, and in the pixel range."""
    near = (adversarial - images).abs().max() <= EPS + 1e-6
    return bool(near and adversarial.min() >= 0 and adversarial.max() <= 1)


# networks


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    """A small network with large gradients, so that attacks break some images and not others."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, classes))
    with torch.no_grad():
        model[-1].weight.mul_(8)
    return model.eval()


def labelled(model: nn.Module, n: int = 10, wrong: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that the model gets right, but for the first `wrong`."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        targets = model(images).argmax(1)
    targets[:wrong] = (targets[:wrong] + 1) % 2
    return images, targets


class Noisy(nn.Module):
    """`network()` with random outputs."""

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        self.inner, self.scale = network(), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        return logits + self.scale * torch.randn_like(logits)


def curved(classes: int = 10) -> nn.Module:
    """A small smooth network on 16-pixel images, in float64."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, classes)
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        model[0].weight.mul_(20)  # so that the loss bends within the ball
    return model


def linear(classes: int = 2) -> nn.Module:
    """Two classes: then the gradient's direction is the same at every image, for a label."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, classes)).double().eval()


def linear_and_sign(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Two classes, and the sign of the cross-entropy's gradient for label 0: that of w1 - w0, at every image."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    weight = model[1].weight.detach()
    return model, (weight[1] - weight[0]).sign().view(1, 3, 8, 8)


def network_and_images(seed: int, n: int = 40) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A random network in float64 whose decisions attacks change at different steps, images, and its own labels."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 24), nn.Tanh(), nn.Linear(24, 4)).double().eval()
    images = torch.rand(n, 3, 4, 4, dtype=torch.float64)
    return model, images, model(images).argmax(1)


class Noting(nn.Module):
    """A network that notes what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, images):
        self.seen.append((images.detach().clone(), self.network.training, torch.is_grad_enabled()))
        return self.network(images)


def input_gradient(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each image's own loss, at logits of float32 as the guard gives them."""
    points = images.detach().clone().requires_grad_(True)
    F.cross_entropy(model(points).float(), targets, reduction="sum").backward()
    model.zero_grad()
    return points.grad


def parameter_gradient(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# methods, one step of them


def on(model: nn.Module, method: str, **options):
    """The method on a network of one's own, and a batch in float64."""
    bench = Bench.make(method, method_args=options)
    attacker = Attacker(model, bench.run.threat)
    bench.defense.run = replace(bench.run, model=model, unwrapped_model=model, attacker=attacker)
    batch = replace(bench.batch, images=bench.batch.images.double())
    if list(model.parameters())[-1].shape[0] == 2:
        batch = replace(batch, targets=batch.targets % 2)
    return bench.defense, batch


def perturbed_at_random(batch) -> Perturbed:
    """Some images in the ball: these tests need no attack."""
    torch.manual_seed(5)
    return Perturbed((batch.images + torch.empty_like(batch.images).uniform_(-EPS, EPS)).clamp(0, 1))


def network_outputs(bench: Bench, perturbed: Perturbed) -> tuple[np.ndarray, np.ndarray]:
    """Clean and adversarial logits in float64, in train mode; the statistics come back as they were."""
    state = {name: value.clone() for name, value in bench.model.state_dict().items()}
    with torch.no_grad():
        clean, adversarial = (bench.model(x).double().numpy() for x in (bench.batch.images, perturbed.images))
    bench.model.load_state_dict(state)
    return clean, adversarial


def all_lanes(attack, problem, job=0):
    """All images of the problem in the attack's first state."""
    rows = torch.arange(len(problem.images))
    return attack.start(rows, torch.full_like(rows, job))


# distilled digits


STITCHED = {"factor": 2, "pool": 30}


def distill_digits(observer, folder, data="digits", **settings):
    """Distils quickly: three images of each class."""
    defaults = {"ipc": 3, "method_args": STITCHED, "workers": 0, "device": "cpu", "quiet": True}
    return timm_robust.distill(data, observer=observer, output=folder, **{**defaults, **settings})


def distilled_content(folder: Path) -> dict[str, bytes]:
    """What distilling made, but for what tells when and how."""
    files = [*folder.glob("train/*/*"), folder / "patches.jsonl", folder / "soft_labels.npy"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def patch_records(folder: Path) -> list[dict]:
    """One for each image."""
    return [json.loads(line) for line in (folder / "patches.jsonl").read_text().splitlines()]
