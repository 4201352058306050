"""The command line: parses, calls `timm_robust.api` and its neighbours, prints. No logic. Torch-free until a command
needs torch. Importing a module registers its commands, in the order in which `--help` shows them.
"""

from timm_robust.cli.app import app, main

from timm_robust.cli import train, compare, distill, evaluate, measure, submit, zoo, lists  # isort: skip
from timm_robust.cli.words import by_method, pairs, spread

__all__ = [
    "app",
    "by_method",
    "compare",
    "distill",
    "evaluate",
    "lists",
    "main",
    "measure",
    "pairs",
    "spread",
    "submit",
    "train",
    "zoo",
]
