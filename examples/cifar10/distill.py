"""What a distilled data set is worth on a CPU: against random images of the same number, and against all images.

    python examples/cifar10/distill.py --data DEST [--ipc 10 50] [--seeds 0 1 2] [--output RUNS]

ResNet-18 with layers [1,1,1,1] and channels [16,32,64,128] throughout. First an observer: standard training on all
CIFAR-10 training images. Then, for each seed, RDED and random images of the same number, and on each a student with the
published recipe and the observer's labels, and one with hard labels; clean accuracy of the best epoch on the test
split. Last, robust accuracy by training second: PGD training with three steps of eps / 2 at Linf 8/255 on all images,
and for as many seconds on random and on distilled images, with hard labels and with the observer's; the curve on
validation images under PGD-5, the best epoch on test images under PGD-10. DEST is an image folder. Each run lies in
--output; one that is there goes on, or is taken as it is. About two hours of one core that knows bfloat16. The record
is written into examples/results/ unless --no-record is given.

A quick look, which proves nothing:

    python examples/cifar10/distill.py --data digits --precision fp32 --epochs 3 --observer-epochs 8 --all-epochs 1 \\
        --seeds 0 --no-record
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from subset import NETWORK

import timm_robust
from timm_robust.report.curves import COLOURS, DASHES, GREY, INK, STYLE, frame, name_lines
from timm_robust.utils.environment import hardware, versions

RESULTS = Path(__file__).resolve().parents[1] / "results"
BATCH = {1: 10, 10: 50, 50: 100}
"""The released code's, by images per class."""

WAYS = {
    "RDED": ("rded", "rded-student"),
    "random images": ("random", "rded-student"),
    "RDED, hard labels": ("rded", "standard"),
    "random images, hard labels": ("random", "standard"),
}
"""How a student is made: the distiller, and the method of training."""

ATTACK = {"steps": 3, "step_ratio": 0.5}
CHECK, TEST = 200, 2_000
"""Images of each check on the validation split, and test images under attack."""


def trained(folder: Path, method: str, data: str, **settings: Any) -> timm_robust.TrainResult:
    """One run to the end; goes on where it was."""
    recipe = {"check_examples": CHECK, **settings.pop("recipe_args", {})}
    return timm_robust.train(
        "resnet18",
        method,
        data,
        model_kwargs=NETWORK,
        output=folder,
        resume=(folder / "manifest.json").exists(),
        recipe_args=recipe,
        device="cpu",
        test_attacks=[],
        **settings,
    )


def distilled(folder: Path, method: str, data: str, observer: Path, ipc: int, seed: int) -> dict[str, Any]:
    """A distilled data set; its record."""
    again = (folder / "manifest.json").exists()
    return timm_robust.distill(
        data, method, observer=observer, ipc=ipc, seed=seed, output=folder, resume=again, device="cpu"
    ).manifest


def clean(folder: Path) -> float:
    """Accuracy of the best epoch on the whole test split."""
    return timm_robust.evaluate(folder, attacks=["clean"], device="cpu", quiet=True).clean_accuracy


def students(arguments: argparse.Namespace, observer: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By images per class and way, for each seed the accuracy of the student and the seconds of distilling."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {str(ipc): {way: [] for way in WAYS} for ipc in arguments.ipc}
    for ipc in arguments.ipc:
        for seed in arguments.seeds:
            for way, (distiller, method) in WAYS.items():
                folder = arguments.output / f"{distiller}-ipc{ipc}-seed{seed}"
                record = distilled(folder, distiller, arguments.data, observer, ipc, seed)
                run = arguments.output / f"{method}-{folder.name}"
                settings = {"recipe": "rded-student", "epochs": arguments.epochs, "batch_size": BATCH.get(ipc, 50)}
                trained(run, method, str(folder), seed=seed, precision=arguments.precision, **settings)
                one = {"seed": seed, "clean_accuracy": clean(run), "seconds": sum(record["seconds"].values())}
                found[str(ipc)][way].append(one)
                print(f"{way}, ipc {ipc}, seed {seed}: {one['clean_accuracy']:.1%}", flush=True)
    return found


def equal_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """Adversarial training on all images, and for as many seconds on a few."""
    ipc, seed = max(arguments.ipc), arguments.seeds[0]
    small, plain = (str(arguments.output / f"{method}-ipc{ipc}-seed{seed}") for method in ("rded", "random"))
    hard: dict[str, Any] = {"method_args": ATTACK, "recipe": "default"}
    soft = {"method_args": {**ATTACK, "adversarial": "5/6"}, "recipe": "rded-student", "batch_size": BATCH.get(ipc, 50)}
    ways: dict[str, tuple[str, str, dict[str, Any]]] = {
        "all images, pgd": ("pgd", arguments.data, hard),
        f"random {ipc} per class, pgd": ("pgd", plain, hard),
        f"rded {ipc} per class, pgd": ("pgd", small, hard),
        f"rded {ipc} per class, rded-student": ("rded-student", small, soft),
    }
    budget, found = 0.0, {}
    for number, (name, (method, data, settings)) in enumerate(ways.items()):
        folder = arguments.output / f"equal-time-{number}"
        shared = {"seed": seed, "precision": arguments.precision, "recipe_args": {"check_attack": "pgd-5-1"}}
        epochs = arguments.all_epochs
        if number:  # the second epoch of a trial says how long one takes
            trial = trained(folder.with_name(f"{folder.name}-trial"), method, data, epochs=3, **settings, **shared)
            each = statistics.median(row["seconds"] for row in trial.history[1:])
            epochs = max(3, round(budget / max(each, 1e-3)))
        rows = trained(folder, method, data, epochs=epochs, **settings, **shared).history
        measured = timm_robust.evaluate(
            folder, data, attacks=["clean", "pgd-10-1"], examples=arguments.test, device="cpu", quiet=True
        )
        seconds = [sum(row["seconds"] for row in rows[: place + 1]) for place in range(len(rows))]
        budget = budget or seconds[-1]
        best = max(row["epoch"] for row in rows if row["best"])
        found[name] = {
            "epochs": len(rows),
            "seconds": round(seconds[-1], 1),
            "best_at": round(seconds[best - 1], 1),
            "curve": [[round(s, 1), round(row["val_robust"], 4)] for s, row in zip(seconds, rows, strict=True)],
            "clean_accuracy": measured.clean_accuracy,
            "pgd-10-1": measured.attacks["pgd-10-1"]["robust_accuracy"],
        }
        print(f"{name}: PGD-10 {found[name]['pgd-10-1']:.1%} after {seconds[-1]:.0f} s", flush=True)
    return {"seed": seed, "test_images": arguments.test, "ways": found}


def draw(ways: dict[str, dict[str, Any]], file: Path) -> None:
    """Robust accuracy on validation images over training seconds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height, left, below, across, high = 10.2, 4.6, 0.62, 0.5, 6.1, 3.2
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        axes = figure.add_axes((left / width, below / height, across / width, high / height))
        figure.text(0.1 / width, 1 - 0.12 / height, "Robust accuracy by training second", weight="bold", size=12.5,
                    color=INK, va="top")  # fmt: skip
        note = f"small ResNet on CIFAR-10, {CHECK} validation images under PGD-5; checks are not counted"
        figure.text(0.1 / width, 1 - 0.4 / height, note, size=9, color=GREY, va="top")
        ends = {}
        for number, (name, way) in enumerate(ways.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS)]}
            seconds, values = zip(*way["curve"], strict=True)
            axes.plot(seconds, values, linewidth=1.6, marker="o" if len(values) < 20 else "", markersize=4, **style)
            ends[name] = (seconds[-1], values[-1], style)
        last = max(end for end, _, _ in ends.values())
        frame(axes, last)
        axes.set_xlim(0, last)
        axes.set_xlabel("training seconds", color=GREY, loc="left")
        name_lines(axes, ends, across, high)
        figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--ipc", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=300, help="of each student")
    parser.add_argument("--observer-epochs", type=int, default=10)
    parser.add_argument(
        "--all-epochs", type=int, default=4, help="of PGD training on all images; its time is the budget"
    )
    parser.add_argument("--test", type=int, default=TEST, help="test images under attack")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--output", type=Path, default=Path("runs/distill"))
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    observer = arguments.output / "observer"
    settings = {"recipe": "default", "recipe_args": {"check_attack": "clean"}, "precision": arguments.precision}
    trained(observer, "standard", arguments.data, epochs=arguments.observer_epochs, **settings)
    told = clean(observer)
    print(f"observer: {told:.1%}", flush=True)
    found = students(arguments, observer)
    timed = equal_time(arguments)
    if arguments.no_record:
        return
    target = RESULTS / "distill-cifar10.json"
    record = {
        "name": "distill-cifar10",
        "command": f"python examples/cifar10/distill.py --data DEST --ipc {' '.join(map(str, arguments.ipc))} "
        f"--seeds {' '.join(map(str, arguments.seeds))} --epochs {arguments.epochs} "
        f"--all-epochs {arguments.all_epochs} --precision {arguments.precision}",
        "date": datetime.date.today().isoformat(),
        "observer": {"epochs": arguments.observer_epochs, "clean_accuracy": told},
        "epochs": arguments.epochs,
        "hardware": hardware(),
        "versions": versions(),
        "students": found,
        "equal_time": timed,
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    draw(timed["ways"], target.with_suffix(".svg"))
    print(f"record: {target}, picture: {target.with_suffix('.svg')}; python examples/results/tables.py fills the cards")


if __name__ == "__main__":
    main()
