"""An epoch of `fgsm-rs` in the engine beside a loop written by hand, taking turns in one run.

    python examples/benchmarks/epoch_beside_plain_loop.py CIFAR10_FOLDER [--images 10000] [--rounds 3] [--json FILE]

The loop is what a careful user writes: channels_last, one gather per batch for crop and flip, autograd.grad to the
input, SGD. Prints seconds per epoch of both and the ratio, without the engine's check on the validation split.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from timm_robust.data import load_data
from timm_robust.data.bundle import Split
from timm_robust.models.factory import build_model
from timm_robust.models.pixel_model import PixelModel
from timm_robust.plugin import get_manager
from timm_robust.recipes.presets import make_recipe
from timm_robust.threat import make_threat
from timm_robust.training.engine import Engine, TrainConfig
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.progress import Display

SMALL = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
EPS = 8 / 255


def network() -> PixelModel:
    torch.manual_seed(0)
    return build_model(
        "resnet18", num_classes=10, image_size=32, model_kwargs=SMALL, data_mean=[0.49] * 3, data_std=[0.25] * 3
    )


def plain_epoch(
    model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer
) -> float:
    """Seconds of one epoch by hand; `pixels` are uint8 [N, 40, 40, 3], padded."""
    started = time.perf_counter()
    model.train()
    offsets = torch.arange(32)
    for rows in torch.randperm(len(labels)).split(128):
        if len(rows) < 2:
            continue
        top, left, flip = (
            torch.randint(9, (len(rows), 1)),
            torch.randint(9, (len(rows), 1)),
            torch.rand(len(rows), 1) < 0.5,
        )
        y, x = top + offsets, left + torch.where(flip, offsets.flip(0), offsets)
        images = pixels[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).float().div_(255)
        targets = labels[rows]
        start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), targets), start)
        delta = (start.detach() + 1.25 * EPS * gradient.sign() - images).clamp(-EPS, EPS)
        loss = F.cross_entropy(model((images + delta).clamp(0, 1)), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundle = load_data(arguments.data)
    assert bundle.train.pixels is not None
    train = Split(
        bundle.train.images, bundle.train.labels[: arguments.images], 32, bundle.train.pixels[: arguments.images]
    )
    config = TrainConfig(
        model=network(),
        defense=get_manager().load_target("fgsm-rs")(get_manager().load_config("fgsm-rs")()),
        data=type(bundle)(**{**vars(bundle), "train": train}),
        recipe=make_recipe("default", {}, {"epochs": arguments.rounds + 1}),
        threat=make_threat(image_size=32),
        output=Path(tempfile.gettempdir()),
        metadata={},
        device="cpu",
        display=Display(quiet=True),
    )
    engine = Engine(config)
    engine.defense.setup(engine.run)
    by_hand = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    padded = F.pad(train.pixels.permute(0, 3, 1, 2), (4, 4, 4, 4)).permute(0, 2, 3, 1).contiguous()
    labels = torch.as_tensor(train.labels)
    ours, plain = [], []
    engine.monitors.on_run_start()
    for engine.state.epoch in range(arguments.rounds):
        ours.append(engine._train_epoch()["seconds"])
        plain.append(plain_epoch(by_hand, padded, labels, optimizer))
        print(f"round {engine.epoch + 1}: timm-robust {ours[-1]:.1f} s, by hand {plain[-1]:.1f} s")
    ratio = statistics.median(ours) / statistics.median(plain)
    print(f"{len(labels)} images: timm-robust / by hand = {ratio:.2f}")
    if arguments.json:
        record = {
            "name": arguments.json.stem,
            "command": f"python examples/benchmarks/epoch_beside_plain_loop.py DEST --images {arguments.images} "
            f"--rounds {arguments.rounds} --json {arguments.json}",
            "date": datetime.date.today().isoformat(),
            "threads": torch.get_num_threads(),
            "hardware": hardware(),
            "versions": versions(),
            "images": len(labels),
            "seconds_per_epoch": {"timm-robust": ours, "by hand": plain},
            "ratio": round(ratio, 3),
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
