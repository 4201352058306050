"""Turns a finished run into a committed record.

    python examples/results/collect.py RUN --name cifar10-small-pgd [--extra RECORD.json ...]

Reads manifest.json, metrics.jsonl and evaluation.json of the run, and further records of `timm-robust evaluate --json`;
writes examples/results/NAME.json without single verdicts and without paths of the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def collect(run: Path, name: str, extra: list[Path], note: str = "") -> dict[str, Any]:
    """The record of a run; `note` tells what its numbers do not, such as a machine shared with other work."""
    manifest = json.loads((run / "manifest.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [json.loads(path.read_text()) for path in (run / "evaluation.json", *extra) if path.is_file()]
    asked, data = manifest["asked"], Path(manifest["data"]["name"]).name
    attacks = {key: value for record in evaluations for key, value in record["attacks"].items()}
    return {
        "name": name,
        "command": command(asked, data),
        "date": datetime.date.today().isoformat(),
        "method": manifest["method"],
        "modifiers": manifest.get("modifiers", {}),
        "model": manifest["model"]["architecture"],
        "model_kwargs": manifest["model"]["model_kwargs"],
        "activation": manifest["model"]["activation"],
        "data": data,
        "threat": manifest["threat"],
        "seed": manifest["seed"],
        "recipe": manifest["recipe"],
        "epochs": len(rows),
        "seconds_per_epoch": round(statistics.median(row["seconds"] for row in rows), 1),
        "minutes": round(sum(row["seconds"] + row["check_seconds"] for row in rows) / 60, 1),
        "best_epoch": max(rows, key=lambda row: (row["val_robust"], row["val_clean"]))["epoch"],
        "curve": [{key: round(row[key], 4) for key in ("val_clean", "val_robust", "train_accuracy")} for row in rows],
        "clean_accuracy": evaluations[0]["clean_accuracy"],
        "n_examples": evaluations[0]["n_examples"],
        "attacks": {key: {k: v for k, v in value.items() if k != "robust"} for key, value in attacks.items()},
        "hardware": manifest["hardware"],
        "versions": manifest["versions"],
        "note": note,
    }


def command(asked: dict[str, Any], data: str) -> str:
    """The command that repeats the run, with the data as DEST where it was a folder."""
    parts = ["timm-robust train", f"--model {asked['model']}", f"--method {asked['method']}"]
    for option, key in (("--model-kwargs", "model_kwargs"), ("-o", "method_args"), ("--set", "recipe_args")):
        if asked[key]:
            values = (f"{name}={str(value).replace(' ', '')}" for name, value in asked[key].items())
            parts.append(f"{option} {' '.join(values)}")
    for name, values in (asked.get("modifiers") or {}).items():
        parts.append(" ".join([f"--modifier {name}", *(f"-o {name}.{key}={value}" for key, value in values.items())]))
    parts.append(f"--data {data if data == asked['data'] else 'DEST'}")
    for key in ("eps", "epochs", "batch_size", "lr", "activation", "recipe"):
        if asked[key] is not None:
            parts.append(f"--{key.replace('_', '-')} {asked[key]}")
    for key, default in (("norm", "Linf"), ("seed", 0), ("precision", "fp32")):
        if asked[key] != default:
            parts.append(f"--{key} {asked[key]}")
    return " ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--extra", type=Path, nargs="*", default=[])
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    record = collect(arguments.run, arguments.name, arguments.extra, arguments.note)
    target = HERE / f"{arguments.name}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
