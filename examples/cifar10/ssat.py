"""Self-supervised adversarial training on a CPU: accuracy for robustness, checkpoint by checkpoint.

    python examples/cifar10/ssat.py --data DEST [--precision bf16] [--output RUNS]

10,000 CIFAR-10 training images, ResNet-18 with layers [1,1,1,1] and channels [16,32,64,128]. Pre-trained without labels
for 40 epochs, then fine-tuned against Linf 8/255 for 200 batches of 100; for comparison the same network trained with
labels for 20 epochs. The k-NN vote of each checkpoint is measured on 1,000 test images at two radii, under the
feature-space attacks and under images transferred from its differentiable surrogate; before and after fine-tuning
Square and, on the surrogate, AutoAttack are run too, on 200. DEST is an image folder. Each run lies in --output; one
that is there is taken as it is, and a killed one goes on. The record is written into examples/results/ unless
--no-record is given. `--tiny` shrinks everything, to see that it works.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subset import NETWORK, subset
from timm_robust_plugins.ssat.evaluate import ATTACKS, evaluate, table

import timm_robust
from timm_robust.report.curves import COLOURS, STYLE
from timm_robust.utils.environment import hardware, versions

RESULTS = Path(__file__).resolve().parents[1] / "results"
RADII = ("8/255", "16/255")
QUICK = ("pgd-knn", "pgd-knn-balanced", "transfer")

FULL = {"train": 10_000, "val": 1_000, "test": 1_000, "hard": 200, "epochs": (40, 2, 20), "every": 20, "queries": 5_000}
TINY = {"train": 400, "val": 100, "test": 40, "hard": 4, "epochs": (1, 1, 1), "every": 2, "queries": 20}
"""Images, those for the strong attacks, epochs of pre-training, fine-tuning and training with labels, batches from one
checkpoint to the next, and queries of Square."""


def train(method: str, data: Any, output: Path, *, epochs: int, seed: int, precision: str, **settings: Any) -> Path:
    """One run to its end; its folder."""
    folder = output / f"{method}-seed{seed}"
    timm_robust.train(
        "resnet18",
        method,
        data,
        model_kwargs=NETWORK,
        output=folder,
        resume=(folder / "manifest.json").exists(),
        recipe="default",
        epochs=epochs,
        eps=RADII[0],
        seed=seed,
        precision=precision,
        device="cpu",
        test_attacks=[],
        **settings,
    )
    return folder


def measure(checkpoint: Path, data: Any, n: int, attacks: Sequence[str], queries: int) -> dict[str, Any]:
    """What the record keeps of one evaluation."""
    settings = {"eps": RADII, "attacks": attacks, "n_examples": n, "queries": queries, "device": "cpu"}
    found = evaluate(checkpoint, data, **settings)
    print(f"{checkpoint}: {table(found)}", flush=True)
    return {name: found[name] for name in ("n_examples", "database", "k", "attack", "knn", "surrogate", "radii")}


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """DSR over clean accuracy along the checkpoints, at both radii: under the paper's attack, and under all of them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), dpi=160, layout="constrained")
        axes = figure.subplots()
        path = [row for row in rows if row["checkpoint"] != "with labels"]
        for radius, colour in zip(RADII, COLOURS, strict=False):
            for attack, dash in (("pgd-knn", "-"), ("worst", "--")):
                points = [(row["knn"]["clean_accuracy"], row["radii"][radius][attack]["dsr"]) for row in path]
                label = f"{radius}, {'PGD-kNN alone' if attack == 'pgd-knn' else 'worst of three attacks'}"
                axes.plot(*zip(*points, strict=True), dash, color=colour, marker="o", markersize=3, label=label)
                axes.plot(*points[0], "s", color=colour, markersize=6)
        axes.set(xlabel="clean accuracy of the vote (squares: before fine-tuning)", ylabel="defence success rate")
        axes.grid(color="#E4E4E4")
        axes.legend(frameon=False)
        figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--output", type=Path, default=Path("runs/ssat"))
    parser.add_argument("--tiny", action="store_true", help="a few images, no record")
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else FULL
    data = subset(arguments.data, train=size["train"], val=size["val"], test=size["test"])
    common = {"data": data, "output": arguments.output, "seed": arguments.seed, "precision": arguments.precision}
    pretraining, finetuning, labelled = size["epochs"]
    # a larger rate than the authors', who pre-train 300 epochs
    encoder = train("ssat-pretrain", epochs=pretraining, lr=1e-3, **common)
    run = train(
        "ssat",
        epochs=finetuning,
        lr=5e-4,
        method_args={"encoder": str(encoder), "checkpoint_every": size["every"]},
        **common,
    )
    # AdamW, because so few steps of SGD would not fit
    standard = train("standard", epochs=labelled, lr=2e-3, recipe_args={"optimizer": "adamw"}, **common)

    steps = sorted((run / "steps").iterdir())
    points = [("with labels", standard / "last"), ("pre-trained", encoder / "last")]
    points += [(f"{int(folder.name)} batches", folder) for folder in steps]
    rows = [
        {"checkpoint": name, **measure(folder, data, size["test"], QUICK, size["queries"])} for name, folder in points
    ]
    hard = [
        {"checkpoint": name, **measure(folder, data, size["hard"], ATTACKS, size["queries"])}
        for name, folder in (points[1], points[-1])
    ]
    if arguments.no_record or arguments.tiny:
        return
    target = RESULTS / "ssat.json"
    record = {
        "name": "ssat",
        "command": f"python examples/cifar10/ssat.py --data DEST --seed {arguments.seed} "
        f"--precision {arguments.precision}",
        "date": datetime.date.today().isoformat(),
        "seed": arguments.seed,
        "training_images": size["train"],
        "epochs": dict(zip(("pre-training", "fine-tuning", "training with labels"), size["epochs"], strict=True)),
        "hardware": hardware(),
        "versions": versions(),
        "checkpoints": rows,
        "all_attacks": hard,
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, target.with_suffix(".svg"))
    print(f"record: {target}, picture: {target.with_suffix('.svg')}; python examples/results/tables.py fills the card")


if __name__ == "__main__":
    main()
