"""AutoAttack's fast mode beside the reference, by attack, on the same model and images in one process.

    python examples/benchmarks/autoattack.py CHECKPOINT --data cifar10 [--n 100] [--eps 8/255] [--norm L2] [--seed 0]
        [--device cuda] [--precisions fp32 bf16] [--compile] [--references 32 256] [--json FILE]

The reference runs once for each batch size in --references: 32 is how RobustBench calls it, with a model whose weights
want gradients; for larger ones they do not, which is calling it well. For each of them the adapter that `evaluate`
drives the reference by runs too, checks and all, stopped after each attack and gone on with; since two runs of the very
same attack differ by a tenth on a machine that others use, the share of its time that it spends outside of the
implementation's attacks is told too. The fast mode runs once for each precision of its crafting. All take turns attack
by attack, so that a machine whose speed drifts disturbs all alike; each goes on with the images that its own attacks
left standing. Seconds are wall time; CPU seconds are beside them, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import timm_robust
from timm_robust.data import as_tensors, load_data
from timm_robust.evaluation import autoattack
from timm_robust.evaluation.autoattack import attacks_for, run_autoattack
from timm_robust.evaluation.autoattack_package import implementation, implementation_version
from timm_robust.evaluation.fast import run_fast
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings, FastMode
from timm_robust.evaluation.state import Slot
from timm_robust.threat import make_threat
from timm_robust.utils.environment import hardware, versions

Way = Callable[[str, Tensor], Tensor]
"""Runs one attack on the images that are still correct, bool [N]; returns those that are after it."""


def reference(inputs: EvalInputs, settings: EvalSettings) -> Way:
    """The installed implementation, called for each batch as its `run_standard_evaluation` does."""
    model, threat, device, seed = inputs.model, inputs.threat, inputs.device, settings.seed
    module = importlib.import_module(implementation())
    adversary = module.AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=device)
    _, n_targets = attacks_for(inputs.num_classes)
    for part in (adversary.apgd_targeted, adversary.fab):
        part.n_target_classes = n_targets
    adversary.apgd.loss, adversary.fab.targeted = "ce", True
    parts = {
        "apgd-ce": adversary.apgd,
        "apgd-t": adversary.apgd_targeted,
        "fab-t": adversary.fab,
        "square": adversary.square,
    }

    def run(attack: str, still_correct: Tensor) -> Tensor:
        still_correct = still_correct.clone()
        for parameter in model.parameters():
            parameter.requires_grad_(settings.batch_size <= 32)
        for rows in still_correct.nonzero().squeeze(1).split(settings.batch_size):
            x, y = inputs.images[rows].to(device), inputs.targets[rows].to(device)
            parts[attack].seed = seed
            with torch.no_grad():
                still_correct[rows] = (model(parts[attack].perturb(x, y)).argmax(1) == y).cpu()
        return still_correct

    return run


class Stop(Exception):
    """The next attack begins."""


class Adapter:
    """What `evaluate` drives the reference by, one attack at a time.

    Attributes:
        outside: seconds it spent on anything but the implementation's own attacks.
    """

    def __init__(self, inputs: EvalInputs, settings: EvalSettings) -> None:
        self.inputs, self.settings = inputs, settings
        self.kept: dict[str, Any] = {}
        self.outside = 0.0

    def __call__(self, attack: str, still_correct: Tensor) -> Tensor:
        started = time.perf_counter()
        timed = self._timed(autoattack._attack, attack)
        with mock.patch.object(autoattack, "_attack", timed), contextlib.suppress(Stop):
            run_autoattack(self.inputs, settings=self.settings, slot=Slot(self.kept, self.kept.update))
        self.outside += time.perf_counter() - started
        return torch.tensor(self.kept["broken_by"]) < 0

    def _timed(self, run_one: Callable[..., Tensor], wanted: str) -> Callable[..., Tensor]:
        def run(adversary: Any, attack: str, *arguments: Any) -> Tensor:
            if attack != wanted:
                raise Stop
            started = time.perf_counter()
            adversarial = run_one(adversary, attack, *arguments)
            self.outside -= time.perf_counter() - started
            return adversarial

        return run


def fast(inputs: EvalInputs, settings: EvalSettings, attacks: list[str]) -> Way:
    """The fast mode, one attack at a time."""

    def run(attack: str, still_correct: Tensor) -> Tensor:
        still_correct, rows = still_correct.clone(), still_correct.nonzero().squeeze(1)
        skip = [name for name in attacks if name != attack]
        still_correct[rows] = run_fast(inputs.subset(rows), settings=settings, skip=skip).robust
        return still_correct

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--n", type=int, default=100, help="images, from the start of the test split")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--references", type=int, nargs="*", default=[32, 256], help="batch sizes of the reference")
    parser.add_argument("--batch-size", type=int, default=256, help="lanes of the fast mode")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], help="of the fast mode's crafting")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("auto-attack").disabled = True
    here = Path(__file__).resolve().parent  # this file has the authors' package's name, and must not be found as it
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != here]

    model = timm_robust.load(arguments.checkpoint).eval().to(arguments.device)
    images, targets = as_tensors(load_data(arguments.data).test, arguments.n)
    threat = make_threat(arguments.norm, arguments.eps, image_size=images.shape[-1])
    inputs = EvalInputs(model, images, targets, threat)
    with torch.no_grad():
        logits = torch.cat([model(part.to(arguments.device)).cpu() for part in images.split(256)])
    attacks, _ = attacks_for(inputs.num_classes)
    ways: dict[str, Way] = {}
    adapters: dict[int, Adapter] = {}
    for size in arguments.references:
        settings = EvalSettings(size, arguments.seed)
        ways[f"reference, batch {size}"] = reference(inputs, settings)
        ways[f"evaluate, batch {size}"] = adapters[size] = Adapter(inputs, settings)
    first = f"fast, {arguments.precisions[0]}"
    for precision in arguments.precisions:
        mode = FastMode(precision, arguments.compile)
        ways[f"fast, {precision}"] = fast(
            inputs, EvalSettings(arguments.batch_size, arguments.seed, fast=mode), attacks
        )

    clean = logits.argmax(1) == targets
    print(f"{arguments.checkpoint}, {arguments.data}, {threat}, n = {len(images)}, {hardware()}")
    print(f"clean {clean.float().mean():.2%}")
    standing = dict.fromkeys(ways, clean)
    seconds: dict[str, dict[str, float]] = {name: {} for name in ways}
    cpu_seconds: dict[str, dict[str, float]] = {name: {} for name in ways}
    after: dict[str, dict[str, float]] = {name: {} for name in ways}
    for attack in attacks:
        for name, way in ways.items():
            _synchronize(arguments.device)
            started, cpu = time.perf_counter(), time.process_time()
            standing[name] = way(attack, standing[name])
            _synchronize(arguments.device)
            seconds[name][attack] = time.perf_counter() - started
            cpu_seconds[name][attack] = time.process_time() - cpu
            after[name][attack] = standing[name].float().mean().item()
            print(
                f"{attack:<8} {name:<20} {seconds[name][attack]:9.1f} s  {cpu_seconds[name][attack]:9.1f} CPU s  "
                f"stands {after[name][attack]:.2%}  {_ratio(seconds, name, attack)}",
                flush=True,
            )
    for name in seconds:
        seconds[name]["all"] = sum(seconds[name].values())
        cpu_seconds[name]["all"] = sum(cpu_seconds[name].values())
        differ = int((standing[name] != standing[first]).sum())
        print(
            f"{'all':<8} {name:<20} {seconds[name]['all']:9.1f} s  {cpu_seconds[name]['all']:9.1f} CPU s  "
            f"{differ} verdicts differ from {first}  {_ratio(seconds, name, 'all')}"
        )
    outside = {f"evaluate, batch {size}": adapter.outside for size, adapter in adapters.items()}
    for name, spent in outside.items():
        print(f"{name}: {spent:.2f} s ({spent / seconds[name]['all']:.1%}) outside the implementation's attacks")
    record: dict[str, Any] = {
        "name": arguments.json.stem if arguments.json else "",
        "command": _command(arguments),
        "date": datetime.date.today().isoformat(),
        "n_examples": len(images),
        "seed": arguments.seed,
        "threat": threat.to_dict(),
        "implementation": implementation_version(),
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
        "unit": "wall and CPU seconds by way and attack; shares that stand after each; verdicts 0/1 by image",
        "clean_accuracy": clean.float().mean().item(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seconds_outside_the_implementation": outside,
        "after": after,
        "robust": {name: still_correct.int().tolist() for name, still_correct in standing.items()},
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1, default=str) + "\n")


def _command(arguments: argparse.Namespace) -> str:
    """The line that repeats it, without the folders of this machine."""
    places = f"{Path(arguments.checkpoint).name} --data {Path(arguments.data).name}"
    return (
        f"python examples/benchmarks/autoattack.py {places} --n {arguments.n} --norm {arguments.norm} "
        f"--seed {arguments.seed} --precisions {' '.join(arguments.precisions)}"
        + (f" --eps {arguments.eps}" if arguments.eps else "")
        + (" --compile" if arguments.compile else "")
    )


def _ratio(seconds: dict[str, dict[str, float]], name: str, attack: str) -> str:
    others = [other for other in seconds if other.startswith("reference") and attack in seconds[other]]
    if name.startswith("reference"):
        return ""
    if name.startswith("evaluate"):
        others = [other for other in others if other.endswith(name.removeprefix("evaluate"))]
    return ", ".join(f"{seconds[name][attack] / max(seconds[o][attack], 1e-9):.2f} x {o}" for o in others)


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
