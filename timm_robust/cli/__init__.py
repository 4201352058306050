"""The command line: parses arguments, calls `timm_robust.api`, prints. No logic, and torch-free until a command needs
torch. Importing a module registers its commands, in the order of `--help`.
"""

from timm_robust.cli.app import app, main

from timm_robust.cli import train, compare, distill, evaluate, report  # isort: skip
from timm_robust.cli import curve, masking, transfer, corruptions, paired, submit, zoo, lists  # isort: skip
from timm_robust.cli.parsing import by_method, pairs, spread

__all__ = [
    "app",
    "by_method",
    "compare",
    "corruptions",
    "curve",
    "distill",
    "evaluate",
    "lists",
    "main",
    "masking",
    "paired",
    "pairs",
    "report",
    "spread",
    "submit",
    "train",
    "transfer",
    "zoo",
]
