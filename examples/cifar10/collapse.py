"""Catastrophic overfitting in an hour on a CPU: who survives one-step training with a large eps on a small network.

    python examples/cifar10/collapse.py --data DEST [--methods fgsm n-fgsm ...] [--eps 12/255] [--output runs/collapse]

10,000 CIFAR-10 training images, 1,000 others for the check, ResNet-18 with layers [1,1,1,1] and channels
[16,32,64,128], 12 epochs, one cycle to 0.2. DEST is an image folder. Each run lies in --output; a run that is there is
taken as it is, and a killed one goes on. The record, with each epoch's accuracies and what the watch saw, is written
into examples/results/ unless --no-record is given.
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
METHODS = ("fgsm", "fgsm-rs", "n-fgsm", "atas", "gradalign", "seat")
TRAIN, CHECK, TEST = 10_000, 1_000, 1_000


def run(method: str, data: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run to the end; its curve, and its last epoch on the test images."""
    output = arguments.output / f"{method}-{arguments.eps.replace('/', '_')}-seed{arguments.seed}"
    result = timm_robust.train(
        "resnet18",
        method,
        data,
        model_kwargs=NETWORK,
        output=output,
        resume=(output / "manifest.json").exists(),
        eps=arguments.eps,
        recipe="default",
        epochs=arguments.epochs,
        recipe_args={"check_examples": 500},
        precision=arguments.precision,
        seed=arguments.seed,
        device=arguments.device,
        test_attacks=[],
    )
    last = timm_robust.evaluate(
        output / "last", data, attacks=["pgd-10-1"], eps=arguments.eps, device=arguments.device, quiet=True
    )
    rows = result.history
    keys = ("train_accuracy", "val_clean", "val_robust")
    return {
        "curve": [{key: round(row[key], 4) for key in keys} for row in rows],
        "events": [event for row in rows for event in row.get("events", [])],
        "looks": [{"epoch": row["epoch"], **look} for row in rows for look in row.get("looks", [])],
        "passes": round(sum(row["passes"] for row in rows) / len(rows), 3),
        "watch_share_of_time": round(
            sum(row.get("look_seconds", 0) for row in rows) / sum(row["seconds"] for row in rows), 4
        ),
        "seconds_per_epoch": round(float(np.median([row["seconds"] for row in rows])), 1),
        "test": {
            "n_examples": last.n_examples,
            "clean_accuracy": last.clean_accuracy,
            "pgd-10-1": last.attacks["pgd-10-1"]["robust_accuracy"],
        },
    }


def as_rows(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A record's curve as the rows of metrics.jsonl that `draw` knows."""

    def events(epoch: int) -> dict[str, Any]:
        found = [event for event in run["events"] if event["epoch"] == epoch]
        return {"events": found} if found else {}

    return [{"epoch": epoch, **row, **events(epoch)} for epoch, row in enumerate(run["curve"], 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--eps", default="12/255")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", help="cpu stays off a GPU")
    parser.add_argument("--output", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    data = subset(arguments.data, train=TRAIN, val=CHECK, test=TEST)
    found = {}
    for method in arguments.methods:
        found[method] = run(method, data, arguments)
        events = [event["epoch"] for event in found[method]["events"]]
        print(
            f"{method:<10} last epoch, test: clean {found[method]['test']['clean_accuracy']:.1%}, "
            f"PGD-10 {found[method]['test']['pgd-10-1']:.1%}; "
            + (f"collapse seen in epoch {events[0]}" if events else "no collapse seen"),
            flush=True,
        )
    if arguments.no_record:
        return
    name = f"collapse-{arguments.eps.replace('/', '-')}" + (f"-seed{arguments.seed}" if arguments.seed else "")
    record = {
        "name": name,
        "command": f"python examples/cifar10/collapse.py --data DEST --eps {arguments.eps} --methods "
        f"{' '.join(arguments.methods)} --epochs {arguments.epochs} --precision {arguments.precision} "
        f"--seed {arguments.seed}",
        "date": datetime.date.today().isoformat(),
        "seed": arguments.seed,
        "eps": arguments.eps,
        "training_images": TRAIN,
        "hardware": hardware(),
        "versions": versions(),
        "methods": found,
    }
    target = RESULTS / f"{name}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    draw(
        {method: [as_rows(one)] for method, one in found.items()},
        [target.with_suffix(".svg")],
        title=f"Who collapses at {arguments.eps}",
        notes=[f"small ResNet on {TRAIN} CIFAR-10 images", "500 validation images under PGD-10, by epoch"],
    )
    print(f"record: {target}, picture: {target.with_suffix('.svg')}; python examples/results/tables.py fills the cards")


if __name__ == "__main__":
    main()
