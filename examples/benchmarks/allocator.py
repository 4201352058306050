"""What it brings to keep freed memory: epochs of training with and without, in turns, each a process of its own.

python examples/benchmarks/allocator.py --data cifar10/ [--methods fgsm-rs] [--precisions fp32 bf16] [--json FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timm_robust.utils.environment import hardware, versions


def epoch(arguments: argparse.Namespace, method: str, precision: str, keep: bool) -> dict[str, float]:
    """Images a second of one epoch, processor seconds of the whole process in user and system mode, and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-W", "ignore", "-m", "timm_robust", "train", "--model", "resnet18", "--method", method]
        line += ["--model-kwargs", "layers=[1,1,1,1]", "channels=[16,32,64,128]", "--data", arguments.data]
        line += ["--epochs", "1", "--precision", precision, "--output", f"{folder}/run", "--device", "cpu"]
        line += ["--test-attack", "clean", "--test-examples", "10", "--set", "check_attack=clean"]
        environment = os.environ | {"TIMM_ROBUST_KEEP_MEMORY": str(int(keep))}
        process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"failed: {' '.join(line)}")
        row = json.loads(Path(folder, "run", "metrics.jsonl").read_text().splitlines()[0])
    return {
        "seconds": row["seconds"],
        "user": usage.ru_utime,
        "system": usage.ru_stime,
        "peak MiB": usage.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--methods", nargs="+", default=["fgsm-rs"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "name": arguments.json.stem if arguments.json else "",
        "command": f"python examples/benchmarks/allocator.py {' '.join(sys.argv[1:])}",
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "unit": "medians over the turns: seconds of one epoch; processor seconds and peak memory of the process",
        "turns": arguments.turns,
        "rows": [],
    }
    for method in arguments.methods:
        for precision in arguments.precisions:
            turns = [
                [epoch(arguments, method, precision, keep) for keep in (False, True)] for _ in range(arguments.turns)
            ]
            for keep, rows in zip((False, True), zip(*turns, strict=True), strict=True):
                medians = {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}
                record["rows"].append({"method": method, "precision": precision, "kept": keep, **medians})
                print(record["rows"][-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
