"""Robust overfitting in an hour on a CPU: what a few images do to PGD training, and what refined labels do about it.

    python examples/cifar10/overfitting.py --data DEST [--methods pgd sglr te] [--seeds 0 1 2] [--output RUNS]

1,000 CIFAR-10 training images as they are, ResNet-18 with layers [1,1,1,1] and channels [16,32,64,128], 30 epochs of
AdamW whose rate falls at 80 %, PGD with three steps of eps / 2 at Linf 8/255. Validation robust accuracy is
followed by epoch on 500 images under PGD-5; best/ (chosen by it) and last/ are then measured on 2,000 test images under
PGD-10, and the gap is the difference. DEST is an image folder. Each run lies in --output; one that is there is taken as
it is, and a killed one goes on. The record is written into examples/results/ unless --no-record is given.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
from subset import NETWORK, subset

import timm_robust
from timm_robust.report.curves import draw
from timm_robust.utils.environment import hardware, versions

RESULTS = Path(__file__).resolve().parents[1] / "results"
IMAGES = {"train": 1_000, "val": 500, "test": 2_000}
EPOCHS = 30

ATTACK = {"steps": 3, "step_ratio": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "pgd": {},
    # both begin before overfitting does, and labels move faster than the authors', since epochs are few
    "sglr": {"start": 0.3, "alpha": 0.7},
    "te": {"start": 0.25, "end": 0.4},
}
"""Options of each method beside those of the attack."""

RECIPE = {
    "optimizer": "adamw",
    "schedule": "multistep",
    "milestones": "0.8",
    "augment": "none",
    "check_attack": "pgd-5-1",
    "check_examples": IMAGES["val"],
}


def run(method: str, seed: int, data: Any, output: Path, precision: str = "bf16") -> dict[str, Any]:
    """One run to the end: its curve, and its best and last weights on the test images."""
    folder = output / f"{method}-seed{seed}"
    result = timm_robust.train(
        "resnet18",
        method,
        data,
        model_kwargs=NETWORK,
        method_args={**ATTACK, **METHODS[method]},
        output=folder,
        resume=(folder / "manifest.json").exists(),
        recipe="default",
        epochs=EPOCHS,
        batch_size=64,
        lr=0.003,
        recipe_args=RECIPE,
        precision=precision,
        seed=seed,
        device="cpu",
        test_attacks=[],
    )
    test = {}
    for which in ("best", "last"):
        measured = timm_robust.evaluate(folder / which, data, attacks=["pgd-10-1"], device="cpu", quiet=True)
        robust = measured.attacks["pgd-10-1"]["robust_accuracy"]
        test[which] = {"clean_accuracy": measured.clean_accuracy, "pgd-10-1": robust}
    rows = result.history
    return {
        "seed": seed,
        "best_epoch": max(row["epoch"] for row in rows if row["best"]),
        "curve": [
            {key: round(row[key], 4) for key in ("train_accuracy", "val_clean", "val_robust")} | {"epoch": row["epoch"]}
            for row in rows
        ],
        "seconds_per_epoch": round(float(np.median([row["seconds"] for row in rows])), 1),
        "test": test,
        "gap": round(test["best"]["pgd-10-1"] - test["last"]["pgd-10-1"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--output", type=Path, default=Path("runs/overfitting"))
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    data = subset(arguments.data, **IMAGES)
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in arguments.methods}
    for seed in arguments.seeds:
        for method in arguments.methods:
            one = run(method, seed, data, arguments.output, arguments.precision)
            found[method].append(one)
            best, last = (one["test"][which]["pgd-10-1"] for which in ("best", "last"))
            print(f"{method:<5} seed {seed}: best {best:.1%}, last {last:.1%}, gap {100 * one['gap']:.1f}", flush=True)
    if arguments.no_record:
        return
    target = RESULTS / "overfitting.json"
    record = {
        "name": "overfitting",
        "command": f"python examples/cifar10/overfitting.py --data DEST --methods {' '.join(arguments.methods)} "
        f"--seeds {' '.join(map(str, arguments.seeds))} --precision {arguments.precision}",
        "date": datetime.date.today().isoformat(),
        "eps": "8/255",
        "training_images": IMAGES["train"],
        "test_images": IMAGES["test"],
        "epochs": EPOCHS,
        "hardware": hardware(),
        "versions": versions(),
        "options": {method: {**ATTACK, **METHODS[method]} for method in found},
        "methods": found,
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    draw(
        {method: [one["curve"] for one in runs] for method, runs in found.items()},
        [target.with_suffix(".svg")],
        title="Robust overfitting",
        notes=[
            f"small ResNet on {IMAGES['train']} CIFAR-10 images, rate falls at 80 %",
            f"{IMAGES['val']} validation images under PGD-5, by epoch",
        ],
    )
    print(f"record: {target}, picture: {target.with_suffix('.svg')}; python examples/results/tables.py fills the cards")


if __name__ == "__main__":
    main()
