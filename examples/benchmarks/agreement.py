"""Whether AutoAttack's fast mode agrees with the reference: paired, image by image, with several seeds.

    python examples/benchmarks/agreement.py --data DEST [--n 1000] [--seeds 0 1 2] [--output RUNS]

Two networks, ResNet-18 with layers [1,1,1,1] and channels [8,8,16,16] so that a CPU can do it: a robust one (N-FGSM at
8/255, 8 epochs) at 8/255 and 16/255, and a weak one (standard training, 4 epochs) at 8/255 and at 2/255, where attacks
have work to do on it. Each is measured on the first n test images with each seed by the reference and by the fast mode,
crafting in float32 and in bfloat16. How many verdicts of the reference differ between two of its own seeds says what to
expect. Networks and verdicts lie in --output; a killed run goes on by the same line. The record, written after each
case into examples/results/ unless --no-record is given, has those that are done. Hours of one core for all.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
from pathlib import Path
from typing import Any

import timm_robust
from timm_robust.evaluation.autoattack_package import implementation_version
from timm_robust.utils.environment import hardware, versions

RESULTS = Path(__file__).resolve().parents[1] / "results"
NETWORK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
NETWORKS = {"robust": ("n-fgsm", 8), "weak": ("standard", 4)}
"""Method and epochs."""
CASES = (("robust", "16/255"), ("weak", "8/255"), ("weak", "2/255"), ("robust", "8/255"))
"""The quickest first: what costs is images that stand."""
MODES: dict[str, dict[str, Any]] = {
    "reference": {},
    "fast": {"fast": True},
    "fast-bf16": {"fast": True, "precision": "bf16"},
}


def network(name: str, data: str, output: Path) -> Path:
    """The trained network's folder."""
    method, epochs = NETWORKS[name]
    folder = output / name
    timm_robust.train(
        "resnet18",
        method,
        data,
        model_kwargs=NETWORK,
        output=folder,
        epochs=epochs,
        resume=(folder / "manifest.json").exists(),
        test_attacks=[],
    )
    return folder


def robust_correct(checkpoint: Path, data: str, eps: str, seed: int, mode: str, arguments: argparse.Namespace) -> Any:
    """AutoAttack's entry for one mode and seed, and the clean accuracy."""
    place = arguments.output / f"{checkpoint.name}-{eps.replace('/', '-')}-{mode}-{arguments.n}-seed{seed}.json"
    if not place.exists():
        timm_robust.evaluate(
            checkpoint, data, attacks=["clean", "autoattack"], examples=arguments.n, eps=eps, seed=seed,
            device=arguments.device, json=place, quiet=arguments.quiet, **MODES[mode],
        )  # fmt: skip
    record = json.loads(place.read_text())
    return record["attacks"]["autoattack"], record["clean_accuracy"]


def differ(one: dict[str, Any], other: dict[str, Any]) -> int:
    return sum(a != b for a, b in zip(one["robust"], other["robust"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--n", type=int, default=1000, help="images, from the start of the test split")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/agreement"))
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    found = []
    for name, eps in CASES:
        checkpoint = network(name, arguments.data, arguments.output)
        modes: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
        clean = 0.0
        for seed in arguments.seeds:
            for mode, entries in modes.items():
                entry, clean = robust_correct(checkpoint, arguments.data, eps, seed, mode, arguments)
                entries.append(entry)
            told = ", ".join(f"{mode} {entries[-1]['robust_accuracy']:.2%}" for mode, entries in modes.items())
            counts = [str(differ(modes["reference"][-1], modes[mode][-1])) for mode in MODES if mode != "reference"]
            print(
                f"{name} at {eps}, seed {seed}: {told}; {' and '.join(counts)} of {arguments.n} verdicts differ from "
                "the reference's",
                flush=True,
            )
        pairs = {mode: list(zip(modes["reference"], entries, strict=True)) for mode, entries in modes.items()}
        pairs["reference"] = list(itertools.combinations(modes["reference"], 2))  # between its own seeds
        method, epochs = NETWORKS[name]
        found.append(
            {
                "network": name,
                "method": method,
                "epochs": epochs,
                "eps": eps,
                "clean_accuracy": clean,
                "robust_accuracy": {
                    mode: [entry["robust_accuracy"] for entry in entries] for mode, entries in modes.items()
                },
                "verdicts_differ": {mode: [differ(*pair) for pair in pairs[mode]] for mode in MODES},
                "seconds": {mode: [entry["seconds"] for entry in entries] for mode, entries in modes.items()},
            }
        )
        if not arguments.no_record:
            write(arguments, found)


def write(arguments: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    """The record of the cases so far."""
    record = {
        "name": "agreement-cpu-small",
        "command": f"python examples/benchmarks/agreement.py --data DEST --n {arguments.n} "
        f"--seeds {' '.join(map(str, arguments.seeds))}",
        "date": datetime.date.today().isoformat(),
        "n_examples": arguments.n,
        "seeds": arguments.seeds,
        "network": NETWORK,
        "norm": "Linf",
        "implementation": implementation_version(),
        "hardware": hardware(),
        "versions": versions(),
        "unit": "accuracies in [0, 1], verdicts that differ from the reference's (of the reference: between pairs of "
        "its seeds), and seconds of runs beside others; by mode and seed",
        "cases": found,
    }
    target = RESULTS / f"{record['name']}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {target}; python examples/results/tables.py fills the README")


if __name__ == "__main__":
    main()
