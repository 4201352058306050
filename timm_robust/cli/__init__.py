"""Command line: parses arguments, calls `timm_robust.api`, prints. Torch is loaded only by commands that need it.

Importing a module registers its commands, in the order of `--help`.
"""

from timm_robust.cli.app import app, main

from timm_robust.cli import train, compare, distill, evaluate, report  # isort: skip
from timm_robust.cli import curve, masking, transfer, corruptions, paired, submit, zoo, lists  # isort: skip

__all__ = [
    "app",
    "compare",
    "corruptions",
    "curve",
    "distill",
    "evaluate",
    "lists",
    "main",
    "masking",
    "paired",
    "report",
    "submit",
    "train",
    "transfer",
    "zoo",
]
