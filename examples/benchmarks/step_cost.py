"""What one adversarial training step costs beside its floor, side by side in one run.

    python examples/benchmarks/step_cost.py [--k 1 10] [--small] [--device cuda] [--precision bf16] [--json FILE]
    python examples/benchmarks/step_cost.py --small --k 10 --methods trades sglr pgd+awp

The floor of a k-step method: k x (forward + backward to the input) + (forward + full backward) + optimizer step, with
weight gradients off while attacking and channels_last. Beside it: the engine's step (fgsm-rs, n-fgsm and atas for
k = 1, else pgd; or any with --methods, what follows a plus being modifiers), a plain torchattacks loop as people write
it, and a loop that calls `.backward()` inside the attack. All take turns, so that a noisy machine disturbs all alike;
the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import operator
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchattacks

from timm_robust.data import load_data
from timm_robust.models.factory import build_like, build_model
from timm_robust.options import describe, parse_options
from timm_robust.plugin import ModifierSpec, get_manager
from timm_robust.recipes.presets import make_recipe
from timm_robust.threat import make_threat
from timm_robust.training.config import TrainConfig
from timm_robust.training.engine import Engine
from timm_robust.utils.allocator import keep_freed_memory
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.progress import Display

SMALL = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}


ONE_STEP = ("fgsm-rs", "n-fgsm", "atas")
"""Methods that are measured beside the floor for k = 1 by default; beyond it is `pgd`."""


def make_engine(arguments: argparse.Namespace, way: str, k: int) -> Engine:
    """A training run of a method on random images, half way through and ready to step."""
    method, *modifiers = way.split("+")
    manager = get_manager()
    manager.register_models()
    size, n = arguments.image_size, arguments.batch_size
    pixels, labels = torch.rand(4 * n, 3, size, size), torch.arange(4 * n) % 10
    bundle = load_data(((pixels, labels), (pixels[:20], labels[:20])), device=arguments.device)
    known = {option.name for option in describe(manager.load_config(method))}
    given = {name: value for name, value in (("attack_bn", "eval"), ("steps", k)) if name in known}
    options = parse_options(manager.load_config(method), given, owner=method)
    kwargs = SMALL if arguments.small else {}
    network = build_model(
        arguments.model, num_classes=10, image_size=size, model_kwargs=kwargs, data_mean=[0.5] * 3, data_std=[0.25] * 3
    )
    recipe = make_recipe("default", {}, {"batch_size": n})
    config = TrainConfig(
        model=network,
        defense=manager.load_target(method)(options),
        modifiers={
            name: manager.load_target(name, ModifierSpec)(manager.load_config(name, ModifierSpec)())
            for name in modifiers
        },
        teachers={
            option: build_like(network).requires_grad_(False).eval() for option in manager.defense(method).spec.teachers
        },
        data=bundle,
        recipe=recipe,
        threat=make_threat(image_size=size),
        output=Path(tempfile.gettempdir()),
        metadata={},
        precision=arguments.precision,
        device=arguments.device,
        display=Display(quiet=True),
    )
    engine = Engine(config)
    engine.defense.setup(engine.run)
    engine.modifiers.setup(engine.run)
    for part in (engine.defense, engine.modifiers):
        part.on_epoch_start(recipe.epochs // 2)
    for trained in engine._trained():
        trained.train()
    return engine


def step_of(engine: Engine) -> Callable[[], None]:
    """One training step as the engine takes it, on its first batch."""
    batch = next(engine.loader.epoch(0))

    def step() -> None:
        perturbed = engine.defense.perturb(batch)
        with engine.modifiers.weights(partial(engine._loss, batch, perturbed)):
            with engine.accelerator.autocast():
                output = engine.defense.loss(batch, perturbed)
            engine.accelerator.backward(output["loss"])
        engine._update(0.0)
        engine.defense.commit(batch, perturbed, output)

    return step


def steps(arguments: argparse.Namespace, k: int) -> dict[str, Callable[[], None]]:
    """The ways of one step, by name; all but the methods' own train the same network on the same batch."""
    methods = arguments.methods or (ONE_STEP if k == 1 else ("pgd",))
    engines = {method: make_engine(arguments, method, k) for method in methods}
    engine = engines[methods[0]]
    batch = next(engine.loader.epoch(0))
    model, eps = engine.unwrapped_model, engine.config.threat.eps
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    # accelerate has patched the model's forward with autocast where precision asks for it, so all ways share it
    autocast = engine.accelerator.autocast if arguments.precision != "fp32" else contextlib.nullcontext

    def update(images: torch.Tensor) -> None:
        with autocast():
            loss = F.cross_entropy(model(images), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def floor() -> None:
        for p in model.parameters():
            p.requires_grad_(False)
        model.eval()
        images = batch.images.clone()
        for _ in range(k):
            images = images.detach().requires_grad_(True)
            with autocast():
                loss = F.cross_entropy(model(images), batch.targets)
            torch.autograd.grad(loss, images)
        model.train()
        for p in model.parameters():
            p.requires_grad_(True)
        update(images.detach())

    plain_images = batch.images.contiguous()
    attack = torchattacks.FFGSM(model, eps, 1.25 * eps) if k == 1 else torchattacks.PGD(model, eps, eps / 4, k)

    def torchattacks_loop() -> None:
        update(attack(plain_images, batch.targets))

    def backward_in_attack() -> None:
        delta = torch.zeros_like(plain_images).uniform_(-eps, eps)
        for _ in range(k):
            delta.requires_grad_(True)
            with autocast():
                loss = F.cross_entropy(model((plain_images + delta).clamp(0, 1)), batch.targets)
            loss.backward()
            delta = (delta.detach() + eps / 4 * delta.grad.sign()).clamp(-eps, eps)
        optimizer.zero_grad(set_to_none=True)
        update((plain_images + delta).clamp(0, 1))

    return {
        "floor": floor,
        **{f"timm-robust {method}": step_of(engine) for method, engine in engines.items()},
        "torchattacks loop": torchattacks_loop,
        ".backward() in the attack": backward_in_attack,
    }


def measure(ways: dict[str, Callable[[], None]], repeats: int, device: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each way, taking turns: its median ratio to the floor of the same round, times the median floor.

    A machine whose speed drifts changes a round's times together, and not their ratios; second is the range of those.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 2):
        for name, way in ways.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            if number >= 2:  # two rounds of warm-up
                times[name].append(time.perf_counter() - started)
    floors = times["floor"]
    ratios = {name: sorted(map(operator.truediv, values, floors)) for name, values in times.items()}
    seconds = {name: statistics.median(floors) * statistics.median(values) for name, values in ratios.items()}
    return seconds, {name: [round(values[0], 3), round(values[-1], 3)] for name, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--methods", nargs="+", help="METHOD or METHOD+MODIFIER, in place of the default ones")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--small", action="store_true", help="layers [1,1,1,1], channels [16,32,64,128]")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--system-allocator", action="store_true", help="return freed memory to the kernel")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kept = not arguments.system_allocator and keep_freed_memory(arguments.device)  # all ways alike
    record: dict[str, Any] = {
        "name": arguments.json.stem if arguments.json else "",
        "command": f"python examples/benchmarks/step_cost.py {' '.join(sys.argv[1:])}",
        "date": datetime.date.today().isoformat(),
        "freed memory kept": kept,
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
        "unit": "median seconds of one step, by k and way; least and largest ratio to the floor of the same round",
        "repeats": arguments.repeats,
        "k": {},
        "ratios": {},
    }
    network = (
        f"{arguments.model}{' (small)' if arguments.small else ''}, batch {arguments.batch_size}, {arguments.precision}"
    )
    print(f"{network}, {record['hardware']}")
    for k in arguments.k:
        medians, ratios = measure(steps(arguments, k), arguments.repeats, arguments.device)
        record["k"][k], record["ratios"][k] = medians, ratios
        for name, seconds in medians.items():
            between = " to ".join(f"{ratio:.2f}" for ratio in ratios[name])
            print(
                f"k = {k:<3} {name:<28} {1000 * seconds:9.1f} ms   {seconds / medians['floor']:.2f} x floor ({between})"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
