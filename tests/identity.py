"""Digests of tiny runs, to show that a restructured package computes the same bits.

    python tests/identity.py OUTDIR                 1 to 3 minutes, one core; writes OUTDIR/digest.json
    python tests/identity.py OUTDIR --all             all other methods too, one epoch each; 2.5 to 7 minutes
    python tests/identity.py --compare A/digest.json B/digest.json

Only what users call is used. Where the tree under test gave an argument another name, `ALIASES` knows it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # sums depend on the number of threads

import argparse
import hashlib
import json
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ALIASES = {"n_examples": ("examples",)}
"""Arguments as they were called at 361d98b, and what they may be called since, in the order in which it is tried."""

NETWORK = {"model": "resnet18", "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}}
NO_TIMES = ("seconds",)
EXTRA_METHODS = (
    *("fgsm", "fgsm-mep", "fgsm-rs", "free", "gat", "gradalign", "hat", "kd-swa", "lbgat", "mart", "moat", "multigrad"),
    *("n-fgsm", "nuat", "sat", "seat", "seat-fl", "ssat", "ssat-pretrain", "te", "zerograd"),
)


def call(function: Any, **arguments: Any) -> Any:
    """Calls with each argument under the first name that is taken."""
    tried: dict[str, list[str]] = {name: list(ALIASES.get(name, ())) for name in arguments}
    while True:
        try:
            return function(**arguments)
        except Exception as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error)) or re.search(
                r"unknown (?:argument|setting) '(\w+)'", str(error)
            )
            name = refused.group(1) if refused else ""
            if not tried.get(name):
                raise
            new = tried[name].pop(0)
            arguments[new] = arguments.pop(name)
            tried[new] = tried.pop(name)


def weights(folder: Path) -> dict[str, str]:
    """A hash of each tensor, by its key: name, type and shape are in it too."""
    from safetensors.torch import load_file

    found = {}
    for key, value in sorted(load_file(folder / "model.safetensors").items()):
        head = f"{key} {value.dtype} {tuple(value.shape)}".encode()
        found[key] = hashlib.sha256(head + value.contiguous().numpy().tobytes()).hexdigest()
    return found


def timeless(value: Any) -> Any:
    """Without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(word in k for word in NO_TIMES)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def run_digest(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"best": weights(folder / "best"), "last": weights(folder / "last"), "metrics": timeless(rows)}


def file_hashes(folder: Path) -> dict[str, str]:
    """Pixels, patches and soft labels of distilled data; not the manifest, which says when and where."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in (".png", ".npy", ".jsonl")]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def verdicts(evaluation: Any) -> dict[str, Any]:
    """All that was measured, verdicts of every image included; numbers of time, place and versions left out."""
    record = evaluation.to_dict()
    attacks = {name: timeless(entry) for name, entry in record["attacks"].items()}
    return {"clean_accuracy": record["clean_accuracy"], "threat": record["threat"], "attacks": attacks}


def main(out: Path, everything: bool) -> None:
    import torch

    torch.set_num_threads(1)
    import timm_robust

    print(f"timm_robust from {Path(timm_robust.__file__).parent}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    digest: dict[str, Any] = {}
    failed = []

    def case(name: str, make: Any) -> None:
        started = time.perf_counter()
        try:
            digest[name] = make()
            told = "done"
        except Exception as error:
            traceback.print_exc()
            digest[name] = {"failed": f"{type(error).__name__}: {error}"}
            failed.append(name)
            told = "FAILED"
        print(f"{name:<24} {told} in {time.perf_counter() - started:.1f} s", flush=True)
        (out / "digest.json").write_text(json.dumps(digest, indent=1, sort_keys=True) + "\n")

    def trained(name: str, **settings: Any) -> dict[str, Any]:
        settings = {"epochs": 2, "data": "digits", **NETWORK, **settings}
        call(timm_robust.train, output=out / name, device="cpu", test_attacks=[], quiet=True, **settings)
        return run_digest(out / name)

    def distilled(name: str) -> dict[str, Any]:
        call(
            timm_robust.distill, data="digits", method="rded", observer=out / "observer", ipc=4, output=out / name,
            device="cpu", quiet=True,
        )  # fmt: skip
        return {"files": file_hashes(out / name)}

    def evaluated(run: str, **settings: Any) -> dict[str, Any]:
        return verdicts(
            call(timm_robust.evaluate, checkpoint=out / run, device="cpu", quiet=True, batch_size=24, **settings)
        )

    case("pgd", lambda: trained("pgd", method="pgd"))
    case("atas", lambda: trained("atas", method="atas", epochs=3))
    case("sglr", lambda: trained("sglr", method="sglr"))
    case(
        "trades-awp-ema",
        lambda: trained(
            "trades-awp-ema", method="trades", epochs=3, modifiers={"awp": {"start": 0.1}}, recipe_args={"ema": 0.99}
        ),
    )
    case("observer", lambda: trained("observer", method="standard", epochs=6))
    case("distilled", lambda: distilled("distilled"))
    case(
        "rded-student",
        lambda: trained(
            "rded-student", method="rded-student", data=str(out / "distilled"), recipe="rded-student", epochs=8,
            method_args={"adversarial": 0.5}, recipe_args={"augment": "none"},
        ),
    )  # fmt: skip
    case(
        "evaluation",
        lambda: evaluated("observer", attacks=["clean", "pgd-10-1", "autoattack"], n_examples=24, eps="12/255"),
    )
    case(
        "evaluation-fast",
        lambda: evaluated("observer", attacks=["autoattack"], n_examples=24, eps="12/255", fast=True),
    )
    if everything:
        for method in EXTRA_METHODS:
            case(f"all-{method}", lambda method=method: trained(f"all-{method}", method=method, epochs=1))
        # no bf16: on these CPUs it gives other bits, or NaN, from run to run
        case("all-pgd-swa", lambda: trained("all-pgd-swa", method="pgd", modifiers={"swa": {"start": 0.3}}))
        case("all-pgd-idbh", lambda: trained("all-pgd-idbh", method="pgd", epochs=1, recipe_args={"augment": "idbh"}))
        case("all-pgd-l2", lambda: trained("all-pgd-l2", method="pgd", epochs=1, norm="L2", eps="0.5"))
    print(f"{out / 'digest.json'}: {len(digest)} cases, {len(failed)} failed")
    sys.exit(bool(failed))


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Places where two digests differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted({*a, *b}):
            place = f"{at}/{key}" if at else key
            if key not in a or key not in b:
                found.append(f"{place}: only in {'B' if key in b else 'A'}")
            else:
                found += differences(a[key], b[key], place)
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{at}[{i}]")]
    return [] if a == b and type(a) is type(b) else [f"{at}: {str(a)[:60]} | {str(b)[:60]}"]


def compare(paths: list[str]) -> None:
    a, b = (json.loads(Path(path).read_text()) for path in paths)
    worse = 0
    for name in sorted({*a, *b}):
        if name not in a or name not in b:
            print(f"{name:<24} only in {'B' if name in b else 'A'}")
            # a digest with --all has more cases than one without
            worse += not name.startswith("all-")
            continue
        found = differences(a[name], b[name])
        if not found and "failed" in a[name]:
            print(f"{name:<24} failed in both: {a[name]['failed']}")
            worse += 1
            continue
        worse += bool(found)
        print(f"{name:<24} {f'DIFFERS in {len(found)} places' if found else 'identical'}")
        for line in found[:8]:
            print(f"    {line}")
    sys.exit(bool(worse))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--compare", nargs=2, metavar="DIGEST")
    given = parser.parse_args()
    if given.compare:
        compare(given.compare)
    elif given.out is None:
        parser.error("expected OUTDIR or --compare A B")
    else:
        main(given.out.resolve(), given.all)
