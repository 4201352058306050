"""What each part of our own recipe adds, on a CPU: TRADES alone, with each part, and with all of them.

    python examples/cifar10/composition.py --data DEST [--ways trades awp ...] [--seeds 0] [--output RUNS]

10,000 CIFAR-10 training images, ResNet-18 with layers [1,1,1,1] and channels [16,32,64,128], 8 epochs of one cycle to
0.2, TRADES with three steps of eps / 2 at Linf 8/255. The best epoch on 500 validation images under PGD-5 is measured
on 5,000 test images under PGD-10. A run this short says what a part costs and whether it works at all, not what it adds
where a network has time to overfit. DEST is an image folder. Each run lies in --output; one that is there is taken as
it is, and a killed one goes on. The record is written into examples/results/ unless --no-record is given.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from subset import NETWORK, subset

import timm_robust
from timm_robust.utils.environment import hardware, versions

RESULTS = Path(__file__).resolve().parents[1] / "results"
IMAGES = {"train": 10_000, "val": 500, "test": 5_000}
EPOCHS = 8

ATTACK = {"steps": 3, "step_ratio": 0.5}
RECIPE = {"check_attack": "pgd-5-1", "check_examples": IMAGES["val"]}
EMA = {"ema": 0.995}
"""Two and a half epochs of these images, as the recipe's 0.999 is of all of CIFAR-10."""

PARTS: dict[str, dict[str, Any]] = {
    "silu": {"activation": "silu"},
    "averaged weights": {"recipe_args": EMA},
    "idbh-weak": {"recipe_args": {"augment": "idbh-weak"}},
    "awp": {"modifiers": ["awp"]},
}
WAYS: dict[str, list[str]] = {"trades": [], **{name: [name] for name in PARTS}, "all": list(PARTS)}


def run(way: str, seed: int, data: Any, output: Path, precision: str) -> dict[str, Any]:
    """One run to the end, its best epoch on the test images."""
    settings: dict[str, Any] = {"activation": "none"}
    recipe = dict(RECIPE)
    for part in WAYS[way]:
        recipe |= PARTS[part].get("recipe_args", {})
        settings |= {name: value for name, value in PARTS[part].items() if name != "recipe_args"}
    folder = output / f"{way.replace(' ', '-')}-seed{seed}"
    result = timm_robust.train(
        "resnet18",
        "trades",
        data,
        model_kwargs=NETWORK,
        method_args=ATTACK,
        output=folder,
        resume=(folder / "manifest.json").exists(),
        recipe="default",
        epochs=EPOCHS,
        recipe_args=recipe,
        precision=precision,
        seed=seed,
        device="cpu",
        test_attacks=[],
        **settings,
    )
    measured = timm_robust.evaluate(folder, data, attacks=["pgd-10-1"], device="cpu", quiet=True)
    return {
        "seed": seed,
        "best_epoch": max(row["epoch"] for row in result.history if row["best"]),
        "seconds_per_epoch": round(statistics.median(row["seconds"] for row in result.history), 1),
        "clean_accuracy": measured.clean_accuracy,
        "pgd-10-1": measured.attacks["pgd-10-1"]["robust_accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--output", type=Path, default=Path("runs/composition"))
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    data = subset(arguments.data, **IMAGES)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.ways}
    for seed in arguments.seeds:
        for way in arguments.ways:
            one = run(way, seed, data, arguments.output, arguments.precision)
            found[way].append(one)
            print(f"{way:<17} seed {seed}: clean {one['clean_accuracy']:.1%}, PGD-10 {one['pgd-10-1']:.1%}", flush=True)
    if arguments.no_record:
        return
    target = RESULTS / "composition.json"
    record = {
        "name": "composition",
        "command": f"python examples/cifar10/composition.py --data DEST --seeds {' '.join(map(str, arguments.seeds))} "
        f"--precision {arguments.precision}",
        "date": datetime.date.today().isoformat(),
        "eps": "8/255",
        "training_images": IMAGES["train"],
        "test_images": IMAGES["test"],
        "epochs": EPOCHS,
        "hardware": hardware(),
        "versions": versions(),
        "ways": found,
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {target}; python examples/results/tables.py fills the page")


if __name__ == "__main__":
    main()
