"""Full-size CIFAR-10 recipes, Linf 8/255, to AutoAttack on the whole test set.

    python examples/cifar10/run.py RECIPE --data DEST [--model preact_resnet18_cifar] [--precision bf16] [--compile]

RECIPE is one of those in README.md beside this file: a method with the budget that its authors use. DEST is an image
folder, or a timm name such as torch/cifar10 (fetched if need be). At the end PGD-50-10 and AutoAttack are measured and
the record is written into examples/results/. `--limit N` measures N test images only, and then writes no record unless
`--record` names one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import timm_robust

RESULTS = Path(__file__).resolve().parents[1] / "results"

RESNET, PREACT = "resnet18_cifar", "preact_resnet18_cifar"

RECIPES: dict[str, dict[str, Any]] = {
    "pgd": {"model": RESNET},
    "trades": {"model": RESNET},
    "sat": {"model": RESNET, "activation": "silu"},
    "sat-relu": {"model": RESNET, "method": "sat", "activation": "none"},
    "fgsm-rs": {"model": RESNET},
    "atas": {"model": PREACT, "recipe": "atas"},
    "seat": {"model": PREACT, "recipe": "seat"},
    "seat-fl": {"model": PREACT, "recipe": "seat"},
    "n-fgsm": {"model": PREACT, "recipe": "n-fgsm"},
    "gradalign": {"model": PREACT, "recipe": "gradalign"},
    "fgsm-mep": {"model": RESNET, "recipe": "fgsm-mep"},
    "nuat": {"model": RESNET, "recipe": "nuat"},
    "nuat-wa": {
        "model": RESNET,
        "method": "nuat",
        "recipe": "nuat-wa",
        "method_args": {"weight": 4.0, "ramp_share": 1.0},
    },
    "gat": {"model": RESNET, "recipe": "gat"},
    "free": {"model": PREACT, "recipe": "free"},
    "zerograd": {"model": PREACT, "recipe": "n-fgsm"},
    "multigrad": {"model": PREACT, "recipe": "n-fgsm"},
    "moat": {"model": PREACT, "recipe": "n-fgsm"},
    "rice": {"model": PREACT, "method": "pgd", "recipe": "rice"},
    "bag-of-tricks": {"model": RESNET, "method": "pgd", "recipe": "bag-of-tricks"},
    "sglr": {"model": RESNET, "recipe": "sglr"},
    "te": {"model": RESNET, "recipe": "te"},
    "mart": {"model": RESNET, "recipe": "mart"},
    "hat": {"model": RESNET, "recipe": "hat"},
    "lbgat": {"model": RESNET, "recipe": "lbgat"},
    "kd-swa": {"model": RESNET, "recipe": "kd-swa", "modifiers": ["swa"]},
    "pgd-awp": {
        "model": PREACT,
        "method": "pgd",
        "recipe": "awp",
        "modifiers": {"awp": {"gamma": 0.01, "start": 0.0}},
    },
    "trades-awp": {"model": RESNET, "method": "trades", "recipe": "trades-awp", "modifiers": ["awp"]},
    "idbh": {"model": PREACT, "method": "pgd", "recipe": "idbh"},
    "strong": {"model": RESNET, "method": "trades", "recipe": "strong", "modifiers": ["awp"], "activation": "silu"},
}
"""Arguments of `train`; the method is the recipe's name and the recipe `default` where none is given."""


def collector() -> ModuleType:
    """examples/results/collect.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("collect", RESULTS / "collect.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(RESULTS / "collect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES, metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--data", default="torch/cifar10", help="image folder, or a timm data set name")
    parser.add_argument("--data-dir", help="where timm data sets are kept")
    parser.add_argument("--output", type=Path, help="folder of the run; by default in runs/")
    parser.add_argument("--model", help="resnet18_cifar, preact_resnet18_cifar, ...; by default the recipe's")
    parser.add_argument("--epochs", type=int, help="by default the recipe's")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", action="store_true", help="continue a killed run in --output")
    parser.add_argument("--limit", type=int, metavar="N", help="measure the first N test images only")
    parser.add_argument("--last", action="store_true", help="measure the last epoch's weights too, as NAME-last")
    parser.add_argument("--record", metavar="NAME", help="name of the record; by default cifar10-MODEL-RECIPE")
    arguments = parser.parse_args()

    settings = {"method": arguments.recipe, "recipe": "default", **RECIPES[arguments.recipe]}
    settings["model"] = model = arguments.model or settings["model"]
    suffix = f"-seed{arguments.seed}" if arguments.seed else ""
    name = arguments.record or f"cifar10-{model.removesuffix('_cifar').replace('_', '-')}-{arguments.recipe}{suffix}"
    output = arguments.output or Path("runs") / name
    fetched = {"data_dir": arguments.data_dir, "download": "/" in arguments.data and not Path(arguments.data).exists()}
    result = timm_robust.train(
        data=arguments.data,
        **fetched,
        **settings,
        eps="8/255",
        epochs=arguments.epochs,
        precision=arguments.precision,
        seed=arguments.seed,
        compile=arguments.compile,
        resume=arguments.resume,
        output=output,
        test_attacks=[],  # all of it below, at once
    )
    print(result)
    for checkpoint, title in ((output, name), (output / "last", f"{name}-last"))[: 1 + arguments.last]:
        record = output / f"{title}.json"
        measured = timm_robust.evaluate(
            checkpoint,
            arguments.data,
            **fetched,
            attacks=["pgd-10-1", "pgd-50-10", "autoattack"],
            examples=arguments.limit,
            json=record,
        )
        print(measured)
        if arguments.limit and not arguments.record:
            print(f"no record written, since --limit is given; all numbers: {record}")
            continue
        target = RESULTS / f"{title}.json"
        target.write_text(json.dumps(collector().collect(output, title, [record]), indent=1) + "\n")
        print(f"record: {target}; python examples/results/tables.py fills it into the pages")


if __name__ == "__main__":
    main()
